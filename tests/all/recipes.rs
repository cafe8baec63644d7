//! The files in recipes/, run as they are under the shells that they meet, with stubs for the stores.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use docspace_rotate::cli::HELP;
use yaml_rust2::{Yaml, YamlLoader};

use crate::mock::*;
use crate::project::*;
use crate::run::*;

/// A command, the folder that is first on its PATH and has the program and a store, and its portal.
type Job = (Command, Folder, MockPortal);

/// Returns a job that finds the program, its settings, and a store. The store appends its arguments to a file, counts
/// its calls as `n`, and refuses the one with this number.
fn job_with_store(
    words: &[&str],
    store: &str,
    script: &str,
    expected: Vec<Expect>,
    refuse: &str,
) -> Job {
    let (path, portal) = (Folder::new(), MockPortal::new(expected));
    symlink(
        env!("CARGO_BIN_EXE_docspace-rotate"),
        path.path("docspace-rotate"),
    )
    .unwrap();
    let count = "echo \"$@\" >> $here/arguments; n=$(wc -l < $here/arguments); n=$((n))";
    let refusal = "[ $n != \"$REFUSE\" ] || { echo '403 Forbidden' >&2; exit 1; }";
    stub(&path, store, &format!("{count}\n{refusal}\n{script}"));
    let mut command = command(words[0]);
    command
        .args(&words[1..])
        .env("DOCSPACE_API_KEY", KEY)
        .env("REFUSE", refuse);
    command.env("PATH", format!("{}:/usr/bin:/bin", path.as_ref().display()));
    command
        .env("DOCSPACE_BASE_URL", portal.url())
        .env("DOCSPACE_CLIENT_ID", CLIENT);
    (command, path, portal)
}

/// Returns a portal's script for each status, and whether there is a new secret to store.
fn runs() -> Vec<(i32, Vec<Expect>, bool)> {
    let with = |reply| {
        good_run()
            .into_iter()
            .chain([expect("POST introspect", recorded(reply))])
            .collect()
    };
    let busy = response("429 ", "Retry-After: 3600", "");
    let refused = expect("DELETE revoke", recorded("delete-403-unsigned"));
    vec![
        (0, with("introspect-200"), true),
        (3, vec![expect("GET token", recorded("token-401"))], false),
        (4, ready([expect("PATCH regenerate", busy)]), false),
        (5, ready([regenerate(), refused]), true),
        (
            7,
            ready([expect("PATCH regenerate", recorded("patch-500"))]),
            false,
        ),
        (8, with("introspect-401"), true),
    ]
}

/// Sends a signal to a job that waits for the portal: the program gets it and says what state the client is in.
#[track_caller]
fn is_told_of(signal: i32, job: impl Fn(Vec<Expect>) -> Job) {
    let (mut command, _path, portal) =
        job(vec![sign_in(), expect_then("HEAD client", [Action::Hang])]);
    let child = start(&mut command);
    portal.wait_for(2);
    send(&child, signal);
    finish(&command, child).fails_with(128 + signal, "; the client's secret is unchanged");
}

/// Returns those shells of the recipes that this machine has.
fn shells() -> impl Iterator<Item = &'static [&'static str]> {
    let all = [
        &["bash", "-e"][..],
        &["dash", "-e"],
        &["busybox", "ash", "-e"],
    ];
    all.into_iter().filter(|shell| {
        let exists = Command::new(shell[0]).arg("--help").output().is_ok();
        if !exists {
            skipped("recipes", &format!("no {} here", shell[0]));
        }
        exists
    })
}

/// Runs a job for each status, and checks what the store then has, without a new secret `old`, and which arguments it
/// got. Then runs a job for each refusal: before anything is sent (1), or when the store gets the secret (6).
fn each_status(
    (stored, old): (&str, Option<&str>),
    refusals: &[(&str, i32)],
    job: impl Fn(Vec<Expect>, &str) -> Job,
    check: impl Fn(&Folder, &str, bool),
) {
    for (status, script, secret) in runs() {
        let (mut command, path, _portal) = job(script, "");
        let done = log_of(&mut command);
        assert_eq!(done.status, Some(status), "{done}");
        assert_eq!(
            read(&path, stored).as_deref(),
            if secret { Some(SECRET) } else { old },
            "{done}"
        );
        check(&path, &read(&path, "arguments").unwrap(), secret);
    }
    for (refuse, status) in refusals {
        let script = if *status == 6 {
            ready([regenerate()])
        } else {
            vec![]
        };
        let (mut command, _path, portal) = job(script, refuse);
        let done = log_of(&mut command);
        assert_eq!(done.status, Some(*status), "{done}");
        assert!(*status == 6 || portal.connections() == 0, "{done}");
    }
}

/// Checks that a file has these lines, whatever their indentation.
#[track_caller]
fn has_lines(name: &str, lines: &str) {
    let text = text(name);
    for line in lines.split("; ") {
        assert!(
            text.lines()
                .any(|other| other.trim().trim_start_matches("- ") == line),
            "{name}: {line}"
        );
    }
}

#[test]
fn github_actions() {
    let lines = "permissions: { contents: read }; timeout-minutes: 15; \
        concurrency: { group: docspace-rotate, cancel-in-progress: false }";
    has_lines("recipes/github-actions.yml", lines);
    let steps = yaml(&text("recipes/github-actions.yml"))["jobs"]["rotate"]["steps"].clone();
    assert_eq!(
        steps[0]["uses"].as_str(),
        Some(&*format!("your-organization/docspace-rotate@v{VERSION}"))
    );
    let script = steps[1]["run"].as_str().unwrap();
    let gh = "[ $n = 1 ] || exec cat > $here/stored";
    let job = |expected: Vec<Expect>, refuse: &str| {
        // The runner's command if the step names no shell.
        let (mut command, path, portal) =
            job_with_store(&["bash", "-e"], "gh", gh, expected, refuse);
        command
            .arg(path.file("script", script))
            .env("GH_TOKEN", TOKEN);
        (command, path, portal)
    };
    let check = |_: &Folder, arguments: &str, secret: bool| {
        assert!(
            arguments.starts_with("secret set DOCSPACE_ROTATE_STARTED --body "),
            "{arguments}"
        );
        assert_eq!(
            arguments.ends_with("\nsecret set DOCSPACE_CLIENT_SECRET\n"),
            secret,
            "{arguments}"
        );
    };
    // A token that can only read costs nothing, and a store that fails later is no success.
    each_status(("stored", None), &[("1", 1), ("2", 6)], job, check);
    is_told_of(libc::SIGINT, |expected| job(expected, ""));
}

#[test]
fn gitlab_ci() {
    let recipe = text("recipes/gitlab-ci.yml");
    assert!(recipe.lines().count() <= 35);
    has_lines(
        "recipes/gitlab-ci.yml",
        "resource_group: docspace-rotate; timeout: 15 minutes",
    );
    let rotate = &yaml(&recipe)["rotate"];
    let lines = rotate["script"].as_vec().unwrap().iter();
    let script: String = lines
        .map(|line| format!("{}\n", line.as_str().unwrap()))
        .collect();
    let variable = |name: &str| rotate["variables"][name].as_str().unwrap();
    assert_eq!(variable("GITLAB_TOKEN"), "$VARIABLES_TOKEN");
    let release = format!("/v{VERSION}/docspace-rotate-{VERSION}-x86_64-unknown-linux-gnu");
    assert!(variable("BINARY").ends_with(&release));
    let glab = "[ \"$GITLAB_TOKEN\" = token-of-the-store ] || exit 98\n\
        [ $2 = get ] && exec echo token-of-the-store\n\
        cat > $here/stored.$n\n\
        [ $n != \"$SLOW\" ] || sleep 1";
    let wget = "[ \"$REFUSE\" != wget ] && [ \"$*\" = \"-O docspace-rotate $BINARY\" ] && ln -s $here/docspace-rotate $2";
    let sum = Command::new("sha256sum")
        .arg(env!("CARGO_BIN_EXE_docspace-rotate"))
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let job = |words: &[&str], expected: Vec<Expect>, refuse: &str| {
        let (mut command, path, portal) = job_with_store(words, "glab", glab, expected, refuse);
        stub(&path, "wget", wget);
        fs::create_dir(path.path("project")).unwrap();
        command
            .current_dir(path.path("project"))
            .env("GITLAB_TOKEN", TOKEN);
        let checksum = if refuse == "checksum" { "0" } else { &sum };
        command
            .env("BINARY", variable("BINARY"))
            .env("CHECKSUM", checksum);
        // As the runner does.
        command
            .args(["-c", "set -o errexit; : | eval \"$SCRIPT\"; exit 0"])
            .env("SCRIPT", &script);
        (command, path, portal)
    };
    let check = |_: &Folder, arguments: &str, secret: bool| {
        let before =
            "variable get DOCSPACE_CLIENT_SECRET\nvariable update DOCSPACE_ROTATE_STARTED\n";
        // Without --masked the secret would no longer be masked.
        let update = "variable update DOCSPACE_CLIENT_SECRET --masked --protected --raw\n";
        assert_eq!(
            arguments.strip_prefix(before),
            Some(if secret { update } else { "" })
        );
    };
    for words in shells() {
        // No such variable, a token that can only read, no binary, or another one: nothing changes.
        let refusals = [("1", 1), ("2", 1), ("wget", 1), ("checksum", 1), ("3", 6)];
        each_status(
            ("stored.3", None),
            &refusals,
            |script, refuse| job(words, script, refuse),
            check,
        );
        // The job is cancelled during the delivery, by a signal to its whole group. It has no terminal.
        let (mut command, path, _portal) = job(words, ready([regenerate()]), "");
        let child = start(in_new_session(command.env("SLOW", "3")));
        assert!(wait_until(
            || read(&path, "stored.3").as_deref() == Some(SECRET)
        ));
        // SAFETY: a plain system call, to a group whose leader is not yet waited for.
        assert_eq!(
            unsafe { libc::kill(-(child.id() as i32), libc::SIGTERM) },
            0
        );
        let done = Run::of(&command, &child.wait_with_output().unwrap());
        assert!(
            done.stderr.contains("ended by SIGTERM") && done.stderr.contains("was delivered"),
            "{done}"
        );
    }
}

#[test]
fn kubernetes() {
    for (recipe, action, account, secret_name, key, deadline) in [
        (
            "kubernetes",
            "FailJob",
            "docspace-rotate",
            "docspace-client",
            "client-secret",
            900,
        ),
        (
            "kubernetes-many",
            "FailIndex",
            "docspace-rotate-many",
            "docspace-clients",
            CLIENT,
            7200,
        ),
    ] {
        let name = format!("recipes/{recipe}.yaml");
        // The account can do what the script does, and no more. The pod is admitted under the level `restricted`.
        let lines = format!(
            "activeDeadlineSeconds: {deadline}; rules: [{{ apiGroups: [\"\"], resources: [secrets], verbs: [get, patch], resourceNames: [{secret_name}] }}]; \
             roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: Role, name: {account} }}; action: {action}; \
             subjects: [{{ kind: ServiceAccount, name: {account} }}]; serviceAccountName: {account}; \
             onExitCodes: {{ containerName: rotate, operator: NotIn, values: [0, 4] }}; restartPolicy: Never; \
             terminationGracePeriodSeconds: 160; runAsNonRoot: true; runAsUser: 65534; \
             seccompProfile: {{ type: RuntimeDefault }}; allowPrivilegeEscalation: false; \
             readOnlyRootFilesystem: true; capabilities: {{ drop: [ALL] }}"
        );
        has_lines(&name, &lines);
        let spec = &yaml(&text(&name))["spec"];
        let spec = if action == "FailJob" {
            &spec["jobTemplate"]["spec"]
        } else {
            spec
        };
        let pod = &spec["template"]["spec"];
        let container = &pod["containers"][0];
        // Each mount has its volume, and each file of a variable its mount.
        let mounts = container["volumeMounts"].as_vec().unwrap();
        assert!(
            mounts
                .iter()
                .zip(pod["volumes"].as_vec().unwrap())
                .all(|(a, b)| a["name"] == b["name"])
        );
        for entry in container["env"].as_vec().unwrap() {
            let (name, value) = (
                entry["name"].as_str().unwrap(),
                entry["value"].as_str().unwrap(),
            );
            let mounted = mounts
                .iter()
                .any(|mount| value.starts_with(mount["mountPath"].as_str().unwrap()));
            assert_eq!(mounted, name.ends_with("_FILE"), "{name}");
        }

        assert_eq!(container["command"], yaml("[sh, -ec]"));
        let script = container["args"][0].as_str().unwrap();
        let kubectl = "[ $n = \"$SLOW\" ] && sleep 1\n\
            case $1 in create) exec cat /dev/stdin ;; esac\n\
            case \"$*\" in *--dry-run=server*) exit ;; esac\n\
            cp secret stored";
        let job = |words: &[&str], expected: Vec<Expect>, refuse: &str| {
            let (mut command, path, portal) =
                job_with_store(words, "kubectl", kubectl, expected, refuse);
            command
                .current_dir(path.as_ref())
                .arg("-c")
                .arg(script.replace("/tmp/secret", "secret"));
            command
                .env_remove("DOCSPACE_API_KEY")
                .env("DOCSPACE_API_KEY_FILE", path.file("key", KEY));
            if action == "FailIndex" {
                let id = path.file("client-id", CLIENT);
                command
                    .env_remove("DOCSPACE_CLIENT_ID")
                    .env("DOCSPACE_CLIENT_ID_FILE", id);
            }
            (command, path, portal)
        };
        let create = format!(
            "create secret generic {secret_name} --from-file={key}=/dev/stdin --dry-run=client -o yaml\n"
        );
        let patch = format!("patch secret {secret_name} --patch-file=secret");
        let check = |_: &Folder, arguments: &str, secret: bool| {
            let stored = if secret {
                format!("{create}{patch}\n")
            } else {
                String::new()
            };
            assert_eq!(
                arguments,
                format!("{create}{patch} --dry-run=server\n{stored}")
            );
        };
        for words in shells() {
            // Without the rights, without the Secret, or with an immutable one, nothing changes.
            let refusals = [("1", 1), ("2", 1), ("3", 6), ("4", 6)];
            each_status(
                ("stored", None),
                &refusals,
                |script, refuse| job(words, script, refuse),
                check,
            );
            // Ended before the program runs, which then never starts, and while it runs.
            let (mut command, path, portal) = job(words, vec![], "");
            let child = start(command.env("SLOW", "2"));
            assert!(wait_until(
                || read(&path, "arguments").is_some_and(|all| all.lines().count() == 2)
            ));
            send(&child, libc::SIGTERM);
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
            assert_eq!(portal.connections(), 0);
            is_told_of(libc::SIGTERM, |expected| job(words, expected, ""));
        }
    }
}

#[test]
fn kubernetes_mounts_each_index_its_own_client() {
    let documents = YamlLoader::load_from_str(&text("recipes/kubernetes-many.yaml")).unwrap();
    let [.., config, job] = &documents[..] else {
        panic!("{documents:?}")
    };
    let ids = config["data"].as_hash().unwrap();
    let lines = "completionMode: Indexed; backoffLimitPerIndex: 2; { name: DOCSPACE_CLIENT_ID_FILE, value: /client-id }";
    has_lines("recipes/kubernetes-many.yaml", lines);
    assert_eq!(job["spec"]["completions"].as_i64(), Some(ids.len() as i64));
    assert!((0..ids.len()).all(|index| ids.contains_key(&Yaml::String(index.to_string()))));
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"][0]["configMap"]["name"],
        config["metadata"]["name"]
    );
    let mount = "{name: client-ids, mountPath: /client-id, subPathExpr: $(JOB_COMPLETION_INDEX), readOnly: true}";
    assert_eq!(pod["containers"][0]["volumeMounts"][0], yaml(mount));
}

#[test]
fn docker() {
    // Takes the environment and the mount from its arguments, as docker would, and runs the program.
    let docker = "while [ $# -gt 0 ]; do case $1 in\n\
        --env-file) while read -r line; do export \"$line\"; done < $2; shift 2 ;;\n\
        -v) mount=${2%%:*}; [ -d $mount ] && exit 125; shift 2 ;;\n\
        */docspace-rotate:*) shift; break ;;\n\
        *) shift ;; esac; done\n\
        [ \"$*\" = '--verify --no-newline --output /client-secret' ] || exit 99\n\
        exec $here/docspace-rotate --verify --no-newline --output $mount";
    let recipe = text("recipes/docker.sh");
    let job = |expected: Vec<Expect>, refuse: &str| {
        let (mut command, path, portal) =
            job_with_store(&["sh"], "docker", docker, expected, refuse);
        let settings = recipe.lines().filter_map(|line| line.strip_prefix("#   "));
        let settings = settings.map(|line| format!("{line}\n")).collect::<String>();
        let settings = settings
            .replace("https://your-portal.example", &portal.url())
            .replace("sk-...", KEY);
        path.file("docspace.env", settings);
        command
            .arg(path.file("docker.sh", &recipe))
            .current_dir(path.as_ref());
        command.env_remove("DOCSPACE_API_KEY");
        (command, path, portal)
    };
    let check = |path: &Folder, arguments: &str, _| {
        let file = fs::metadata(path.path("client-secret")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        let start = "run --rm --name docspace-rotate --read-only --cap-drop=ALL --security-opt=no-new-privileges";
        let expected = format!(
            "{start} --user {}:{} --env-file docspace.env -v ",
            file.uid(),
            file.gid()
        );
        assert!(arguments.starts_with(&expected), "{arguments}");
    };
    each_status(("client-secret", Some("")), &[], job, check);
    has_lines(
        "Dockerfile",
        "FROM scratch; USER 65534:65534; ENTRYPOINT [\"/docspace-rotate\"]",
    );
}

#[test]
fn cron() {
    if !Path::new("/usr/bin/flock").exists() {
        skipped("recipes::cron", "no flock here");
        return;
    }
    let crontab = text("recipes/crontab");
    let (_, command) = crontab
        .lines()
        .last()
        .unwrap()
        .split_once("  app  ")
        .unwrap();
    // To cron a percent sign is a newline.
    assert!(!command.contains('%'));
    let prepare = |expected: Vec<Expect>| {
        let (mut job, path, portal) =
            job_with_store(&["/bin/sh", "-c"], "unused", "", expected, "");
        let here = path.as_ref().to_str().unwrap();
        let mut script = command.replace(
            "/var/lib/docspace-rotate/lock",
            &format!("{here}/locks/lock"),
        );
        for folder in [
            "/usr/local/bin",
            "/etc/app",
            "/var/lib/docspace-rotate",
            "/etc/docspace-rotate",
        ] {
            script = script.replace(folder, here);
        }
        // The last command of such a file may well fail.
        let env = format!(
            "DOCSPACE_BASE_URL={} DOCSPACE_CLIENT_ID={CLIENT}",
            portal.url()
        );
        path.file(
            "env",
            format!("export {env} DOCSPACE_API_KEY={KEY}\n[ -n \"$HTTPS_PROXY\" ] && :\n"),
        );
        path.file("client-secret", "old\n");
        job.env_clear().env("PATH", "/usr/bin:/bin").arg(script);
        (job, path, portal)
    };
    let mails = |job: &mut Command, path: &Folder, status: i32| {
        let mail = format!(
            "docspace-rotate ended with {status}, see {}/log\n",
            path.as_ref().display()
        );
        assert_eq!(log_of(job).stdout, if status == 0 { "" } else { &mail });
    };
    for (status, script, secret) in runs() {
        let (mut job, path, _portal) = prepare(script);
        fs::create_dir(path.path("locks")).unwrap();
        mails(&mut job, &path, status);
        let stored = if secret {
            format!("{SECRET}\n")
        } else {
            "old\n".to_owned()
        };
        assert_eq!(read(&path, "client-secret"), Some(stored));
        let log = read(&path, "log").unwrap();
        assert!(
            log.lines().next().unwrap().contains(" UTC ") && !log.contains(SECRET),
            "{log}"
        );
        assert!(log.contains("[GET token] Status: "), "{log}");
    }
    // 66 without the folder of the lock, 69 without the program, and 1 while another run has the lock.
    let (mut job, path, portal) = prepare(vec![]);
    mails(&mut job, &path, 66);
    fs::create_dir(path.path("locks")).unwrap();
    fs::rename(path.path("docspace-rotate"), path.path("elsewhere")).unwrap();
    mails(&mut job, &path, 69);
    fs::rename(path.path("elsewhere"), path.path("docspace-rotate")).unwrap();
    let lock = fs::File::open(path.path("locks/lock")).unwrap();
    // SAFETY: a plain system call on an open file.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    mails(&mut job, &path, 1);
    assert_eq!(portal.connections(), 0);
}

/// Returns the names that a text links to as recipes.
fn linked(text: &str) -> Vec<&str> {
    text.split("](recipes/")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
        .collect()
}

/// The README has all that `--help` and the log have, and links to each recipe.
#[test]
fn readme() {
    let readme = text("README.md");
    let words = HELP.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
    let named = words
        .filter(|word| word.starts_with("--") && word.len() > 2 || word.starts_with("DOCSPACE_"))
        .filter(|word| !["--help", "--version"].contains(word))
        .map(str::to_owned);
    let statuses = (2..=8).map(|status| format!("| {status} | "));
    for wanted in named
        .chain(statuses)
        .chain(GOOD_RUN_LOG.map(|line| format!("    {line}\n")))
    {
        assert!(readme.contains(&wanted), "{wanted}");
    }
    let mut linked = linked(&readme);
    linked.sort();
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes")).unwrap();
    let mut names: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(linked, names);
}

/// Each version of this program in a text that users read or copy is this one.
#[test]
fn the_version_is_the_same_everywhere() {
    assert!(
        text("CHANGELOG.md")
            .split("\n## ")
            .nth(1)
            .unwrap()
            .starts_with(&format!("{VERSION}\n"))
    );
    let mut places = 0;
    let readme = text("README.md");
    let recipes = linked(&readme)
        .into_iter()
        .map(|name| format!("recipes/{name}"));
    for name in recipes.chain(["README.md".to_owned(), "Dockerfile".to_owned()]) {
        let text = text(&name);
        let program = ["docspace-rotate:", "docspace-rotate@v", "docspace-rotate-"];
        for before in program.into_iter().chain(["download/v", "version=\""]) {
            for after in text.split(before).skip(1) {
                let version = after
                    .split(|c: char| !c.is_ascii_digit() && c != '.')
                    .next()
                    .unwrap();
                assert!(
                    version == VERSION || version.split('.').count() != 3,
                    "{name}: {before}{version}"
                );
                places += usize::from(version == VERSION);
            }
        }
    }
    assert!(places >= 12, "{places}");
}
