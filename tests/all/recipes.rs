//! The files in recipes/, run as they are under the shells that they meet, with stand-ins for the stores that
//! take a secret and that refuse it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use docspace_rotate::cli::HELP;
use yaml_rust2::{Yaml, YamlLoader};

use crate::portal::{
    Act, CLIENT, KEY, LOG, SECRET, SIGNATURE, Stand, Step, good_run, http, looked, on, reply, wait_until,
};
use crate::run::{self, Folder, Run, run};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn recipe(name: &str) -> String {
    let path = format!("{HERE}/recipes/{name}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&recipe(name)).unwrap()
}

/// The one document of a text.
fn yaml(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).unwrap().remove(0)
}

/// The document of this kind.
fn of_kind<'a>(documents: &'a [Yaml], kind: &str) -> &'a Yaml {
    documents.iter().find(|document| document["kind"].as_str() == Some(kind)).unwrap()
}

/// The value of a container's variable.
fn variable<'a>(container: &'a Yaml, name: &str) -> Option<&'a str> {
    let mut all = container["env"].as_vec().unwrap().iter();
    all.find(|entry| entry["name"].as_str() == Some(name))?["value"].as_str()
}

/// What each status of a run looks like, and whether there is a new secret to store.
fn runs() -> Vec<(i32, Vec<Step>, bool)> {
    let proof = |name| on("POST introspect", reply(name));
    let mut kept = good_run();
    kept[3] = on("DELETE revoke", reply("delete-403-unsigned"));
    let busy = on("PATCH regenerate", http("429 ", "Retry-After: 3600", ""));
    vec![
        (0, good_run().into_iter().chain([proof("introspect-200")]).collect(), true),
        (3, vec![on("GET token", reply("token-401"))], false),
        (4, looked([busy]), false),
        (5, kept, true),
        (7, looked([on("PATCH regenerate", reply("patch-500"))]), false),
        (8, good_run().into_iter().chain([proof("introspect-401")]).collect(), true),
    ]
}

/// What a run does whose store refuses the secret: nothing is revoked.
fn lost() -> Vec<Step> {
    looked([on("PATCH regenerate", reply("patch-200"))])
}

/// A folder for PATH, with the program and one stand-in. That notes its arguments, keeps what it is given as
/// `stored.N` at its N-th call, and refuses at the call `REFUSE`.
fn path_with(name: &str, script: &str) -> Folder {
    let folder = Folder::new();
    symlink(env!("CARGO_BIN_EXE_docspace-rotate"), folder.path("docspace-rotate")).unwrap();
    let here = folder.as_ref().display();
    let text = format!(
        "#!/bin/sh\nhere={here}\necho \"$@\" >> $here/arguments\nn=$(wc -l < $here/arguments)\nn=$((n))\n{script}\n"
    );
    let stand_in = folder.file(name, text);
    fs::set_permissions(stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn path_of(folder: &Folder) -> String {
    format!("{}:/usr/bin:/bin", folder.as_ref().display())
}

/// A shell with nothing but that PATH and a setting for the program.
fn shell(words: &[&str], path: &Folder, stand: &Stand) -> Command {
    let mut command = run::command(words[0]);
    command.args(&words[1..]);
    command.env("PATH", path_of(path));
    command
        .env("DOCSPACE_BASE_URL", stand.url())
        .env("DOCSPACE_CLIENT_ID", CLIENT)
        .env("DOCSPACE_API_KEY", KEY);
    command
}

/// The same secrets are hidden in all that a job's log would hold.
fn log_of(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let run = Run::of(command, &output);
    for hidden in [KEY, SIGNATURE, SECRET, "token-of-the-store"] {
        assert!(
            !run.stdout.contains(hidden) && !run.stderr.contains(hidden),
            "a secret is in the log\n{run}"
        );
    }
    run
}

/// Ends a job while the portal is looked at: the signal reaches the program, which says what state the client is in.
#[track_caller]
fn is_told_of(signal: i32, command: &mut Command, stand: &Stand) {
    let child = run::start(command);
    stand.wait_for(2);
    run::send(&child, signal);
    let done = run::finish(command, child);
    assert_eq!(done.status, Some(128 + signal), "{done}");
    assert!(done.error().contains("; the client's secret is unchanged"), "{done}");
}

/// The script of a job that is ended so.
fn silent_look() -> Vec<Step> {
    vec![on("GET token", reply("token-200")), Step::Request("HEAD client", vec![Act::Hang])]
}

fn read(folder: &Folder, name: &str) -> Option<String> {
    fs::read_to_string(folder.path(name)).ok()
}

/// The shells that are on this machine, of those that run such a script.
fn shells() -> Vec<Vec<&'static str>> {
    let mut all = vec![vec!["bash", "-e"], vec!["dash", "-e"], vec!["busybox", "ash", "-e"]];
    all.retain(|shell| {
        let mut empty = Command::new(shell[0]);
        let there = empty.args(&shell[1..]).args(["-c", ":"]).output().is_ok_and(|run| run.status.success());
        if !there {
            run::skipped("recipes", &format!("no {} here", shell[0]));
        }
        there
    });
    all
}

#[test]
fn github_actions() {
    let workflow = &documents("github-actions.yml")[0];
    assert_eq!(workflow["permissions"]["contents"].as_str(), Some("read"));
    assert_eq!(workflow["concurrency"]["cancel-in-progress"].as_bool(), Some(false));
    let steps = workflow["jobs"]["rotate"]["steps"].as_vec().unwrap();
    assert_eq!(steps[0]["with"]["persist-credentials"].as_bool(), Some(false));
    let (_, commit) = steps[0]["uses"].as_str().unwrap().split_once('@').unwrap();
    assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit}");
    let env = "{DOCSPACE_BASE_URL: \"${{ vars.DOCSPACE_BASE_URL }}\", DOCSPACE_CLIENT_ID: \"${{ vars.DOCSPACE_CLIENT_ID }}\", \
         DOCSPACE_API_KEY: \"${{ secrets.DOCSPACE_API_KEY }}\", GH_TOKEN: \"${{ secrets.SECRETS_TOKEN }}\", \
         GH_REPO: \"${{ github.repository }}\"}";
    assert_eq!(steps[2]["env"], yaml(env));
    let script = steps[2]["run"].as_str().unwrap();
    let gh =
        "[ $n = \"$REFUSE\" ] && { echo 'HTTP 403' >&2; exit 1; }\n[ $n = 1 ] || exec cat > $here/stored";
    let job = |steps: Vec<Step>, refuse: &str| {
        let (path, stand) = (path_with("gh", gh), Stand::script(steps));
        // As the runner does where no shell is named.
        let file = path.file("script", script);
        let mut command = shell(&["bash", "-e", file.to_str().unwrap()], &path, &stand);
        command.env("REFUSE", refuse).env("GH_TOKEN", "token-of-the-store");
        (command, path, stand)
    };
    let run_with = |steps: Vec<Step>, refuse: &str| {
        let (mut command, path, stand) = job(steps, refuse);
        (log_of(&mut command), path, stand)
    };
    for (status, steps, secret) in runs() {
        let (done, path, _stand) = run_with(steps, "");
        assert_eq!(done.status, Some(status), "{done}");
        assert_eq!(read(&path, "stored"), secret.then(|| SECRET.to_owned()), "{done}");
        let arguments = read(&path, "arguments").unwrap();
        assert!(arguments.starts_with("secret set DOCSPACE_ROTATE_STARTED --body "), "{arguments}");
        assert_eq!(arguments.ends_with("\nsecret set DOCSPACE_CLIENT_SECRET\n"), secret, "{arguments}");
    }
    // A token that may only read costs nothing, and a store that fails later is no success.
    let (done, _path, stand) = run_with(vec![], "1");
    assert_eq!((done.status, stand.connections()), (Some(1), 0), "{done}");
    let (done, _path, _stand) = run_with(lost(), "2");
    assert_eq!(done.status, Some(6), "{done}");
    let (mut command, _path, stand) = job(silent_look(), "");
    is_told_of(libc::SIGINT, &mut command, &stand);
}

#[test]
fn gitlab_ci() {
    let script = documents("gitlab-ci.yml")[0]["rotate"]["script"][0].as_str().unwrap().to_owned();
    // Writes a body and says the status that is its turn; `none` is no connection, and `html` a page of another's.
    let curl = "for word in \"$@\"; do case $word in\n\
        @*/header) token=$(cat \"${word#@}\") ;; */DOCSPACE*) name=${word##*/} ;; *secret-*) exit 99 ;; esac; done\n\
        [ \"$token\" = 'PRIVATE-TOKEN: token-of-the-store' ] || exit 98\n\
        set -- $CODES - - -; shift $((n - 1))\n\
        [ $1 = none ] && exit 7\n\
        [ $n = 1 ] || cat > $here/stored.$n\n\
        [ $n = \"$SLOW\" ] && sleep 1\n\
        case $1 in\n\
        html) echo '<html>DOCSPACE_CLIENT_SECRET' > $work/answer; set -- 200 ;;\n\
        2*) echo '{\"key\":\"'$name'\",\"value\":\"token-of-the-store\"}' > $work/answer ;;\n\
        304) ;;\n\
        *) echo \"an answer with status $1\" > $work/answer ;; esac\n\
        printf %s $1";
    let job = |shell_words: &[&str], text: &str, steps: Vec<Step>, codes: &str| {
        let (path, stand) = (path_with("curl", curl), Stand::script(steps));
        let mut command = shell(shell_words, &path, &stand);
        command.arg("-c").arg(text).env("CODES", codes).env("VARIABLES_TOKEN", "token-of-the-store");
        command.env("CI_API_V4_URL", "https://gitlab.invalid/api/v4").env("CI_PROJECT_ID", "7");
        command.env("TMPDIR", path.as_ref());
        (command, path, stand)
    };
    // As the runner does.
    let piped = "set -o errexit; : | eval \"$SCRIPT\"; exit 0";
    let run_with = |shell_words: &[&str], steps: Vec<Step>, codes: &str| {
        let (mut command, path, stand) = job(shell_words, piped, steps, codes);
        (log_of(command.env("SCRIPT", &script)), path, stand)
    };
    // Nothing is left of the token.
    let is_clean = |path: &Folder| {
        assert!(path.names().iter().all(|name| !name.starts_with("tmp")), "{:?}", path.names());
    };
    for words in shells() {
        for (status, steps, secret) in runs() {
            let (done, path, _stand) = run_with(&words, steps, "200 200 200");
            assert_eq!(done.status, Some(status), "{done}");
            assert_eq!(read(&path, "stored.3"), secret.then(|| SECRET.to_owned()), "{done}");
            let arguments = read(&path, "arguments").unwrap();
            let all: Vec<&str> = arguments.lines().collect();
            let variable = "https://gitlab.invalid/api/v4/projects/7/variables/DOCSPACE";
            assert!(all.iter().all(|line| line.starts_with("-q -sS -m 25 ")), "{arguments}");
            assert!(all[0].ends_with(&format!("-X GET {variable}_CLIENT_SECRET")), "{arguments}");
            let put = format!("-X PUT {variable}_ROTATE_STARTED --data-urlencode value@-");
            assert!(all[1].ends_with(&put), "{arguments}");
            let put = format!("-X PUT {variable}_CLIENT_SECRET --data-urlencode value@- -d masked=true");
            assert_eq!(all.get(2).is_some_and(|line| line.ends_with(&put)), secret, "{arguments}");
            is_clean(&path);
        }
        for (code, shown) in
            [("404", true), ("401", true), ("403", true), ("302", true), ("201", false), ("304", false)]
                .into_iter()
                .chain([("html", false), ("none", false)])
        {
            // The variable is not there, or the token may not write: nothing changes.
            for codes in [code.to_owned(), format!("200 {code}")] {
                let (done, path, stand) = run_with(&words, vec![], &codes);
                assert_eq!((done.status, stand.connections()), (Some(1), 0), "{codes} {done}");
                assert_eq!(done.stderr.contains("an answer with status "), shown, "{done}");
                let said = done.stderr.contains("GitLab answered ");
                assert_eq!(said, code != "none", "{done}");
                is_clean(&path);
            }
            let (done, _path, _stand) = run_with(&words, lost(), &format!("200 200 {code}"));
            assert_eq!(done.status, Some(6), "{code} {done}");
        }
        // A trace that the job's shell was started with does not show the token.
        let (mut command, _path, _stand) =
            job(&[&words[..], &["-x"]].concat(), &script, lost(), "200 200 404");
        assert_eq!(log_of(&mut command).status, Some(6));
        // A job that is cancelled while GitLab takes the secret, by a signal to all of it.
        let (mut command, path, _stand) = job(&words, &script, lost(), "200 200 200");
        let child = run::start(command.env("SLOW", "3").process_group(0));
        assert!(wait_until(|| read(&path, "stored.3").as_deref() == Some(SECRET)));
        // SAFETY: a plain system call, to a group whose leader is not yet waited for.
        assert_eq!(unsafe { libc::kill(-(child.id() as i32), libc::SIGTERM) }, 0);
        let done = Run::of(&command, &child.wait_with_output().unwrap());
        assert_eq!(done.status, Some(143), "{done}");
        assert!(done.stderr.contains("ended by SIGTERM") && done.stderr.contains("is handed over"), "{done}");
        assert_eq!(read(&path, "stored.3").as_deref(), Some(SECRET));
        is_clean(&path);
    }
}

/// The pod specification of the recipe's job, and the rule for its failures.
fn pod_of(name: &str) -> (Yaml, Yaml) {
    let documents = documents(name);
    let job = documents.iter().find(|document| !document["spec"].is_badvalue()).unwrap();
    let spec = &job["spec"];
    let spec = if job["kind"].as_str() == Some("CronJob") { &spec["jobTemplate"]["spec"] } else { spec };
    assert!(spec["activeDeadlineSeconds"].as_i64().is_some());
    (spec["template"]["spec"].clone(), spec["podFailurePolicy"]["rules"][0].clone())
}

#[test]
fn kubernetes() {
    for (name, secret_name, action) in [
        ("kubernetes.yaml", "docspace-client", "FailJob"),
        ("kubernetes-many.yaml", "docspace-clients", "FailIndex"),
    ] {
        let (pod, rule) = pod_of(name);
        assert_eq!(rule["action"].as_str(), Some(action));
        assert_eq!(rule["onExitCodes"]["operator"].as_str(), Some("NotIn"));
        assert_eq!(rule["onExitCodes"]["values"], yaml("[0, 4]"));
        // Admitted under the PodSecurity level `restricted`.
        let container = &pod["containers"][0];
        let locked = &container["securityContext"];
        assert_eq!(rule["onExitCodes"]["containerName"], container["name"]);
        assert_eq!(pod["restartPolicy"].as_str(), Some("Never"));
        assert_eq!(pod["terminationGracePeriodSeconds"].as_i64(), Some(160));
        assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
        assert_eq!(pod["securityContext"]["runAsUser"].as_i64(), Some(65534));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"].as_str(), Some("RuntimeDefault"));
        assert_eq!(locked["allowPrivilegeEscalation"].as_bool(), Some(false));
        assert_eq!(locked["capabilities"]["drop"][0].as_str(), Some("ALL"));
        // The account may do what the script does, and no more.
        let all = documents(name);
        let of = |kind| of_kind(&all, kind);
        let rules = format!(
            "[{{apiGroups: [\"\"], resources: [secrets], verbs: [get, patch], resourceNames: [{secret_name}]}}]"
        );
        assert_eq!(of("Role")["rules"], yaml(&rules));
        let account = &pod["serviceAccountName"];
        let binding = of("RoleBinding");
        for named in [&of("ServiceAccount")["metadata"], &of("Role")["metadata"], &binding["roleRef"]] {
            assert_eq!(named["name"], *account);
        }
        assert_eq!(binding["subjects"][0]["name"], *account);
        // Each mount has its volume, and each file of a variable its mount.
        let named = |list: &Yaml| -> Vec<Yaml> {
            list.as_vec().unwrap().iter().map(|entry| entry["name"].clone()).collect()
        };
        assert_eq!(named(&container["volumeMounts"]), named(&pod["volumes"]));
        for entry in container["env"].as_vec().unwrap() {
            let (name, value) = (entry["name"].as_str().unwrap(), entry["value"].as_str().unwrap());
            let mut mounts = container["volumeMounts"].as_vec().unwrap().iter();
            let mounted = mounts.any(|mount| value.starts_with(mount["mountPath"].as_str().unwrap()));
            assert_eq!(mounted, name.ends_with("_FILE"), "{name}");
        }

        assert_eq!(container["command"], yaml("[sh, -ec]"));
        let script = container["args"][0].as_str().unwrap();
        let kubectl = "[ $n = \"$REFUSE\" ] && { echo 'forbidden' >&2; exit 1; }\n\
            [ $n = \"$SLOW\" ] && sleep 1\n\
            case $1 in create) exec cat /dev/stdin ;; esac\n\
            case \"$*\" in *--dry-run=server*) exit ;; esac\n\
            cp $here/secret $here/stored";
        let job = |words: &[&str], steps: Vec<Step>| {
            let (path, stand) = (path_with("kubectl", kubectl), Stand::script(steps));
            let script = script.replace("/tmp/secret", path.path("secret").to_str().unwrap());
            let mut command = shell(words, &path, &stand);
            command.arg("-c").arg(script);
            command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", path.file("key", KEY));
            if variable(container, "DOCSPACE_CLIENT_ID_FILE").is_some() {
                let id = path.file("client-id", CLIENT);
                command.env_remove("DOCSPACE_CLIENT_ID").env("DOCSPACE_CLIENT_ID_FILE", id);
            }
            (command, path, stand)
        };
        let run_with = |words: &[&str], steps: Vec<Step>, refuse: &str| {
            let (mut command, path, stand) = job(words, steps);
            (log_of(command.env("REFUSE", refuse)), path, stand)
        };
        let key = if action == "FailIndex" { CLIENT } else { "client-secret" };
        for words in shells() {
            for (status, steps, secret) in runs() {
                let (done, path, _stand) = run_with(&words, steps, "");
                assert_eq!(done.status, Some(status), "{done}");
                assert_eq!(read(&path, "stored"), secret.then(|| SECRET.to_owned()), "{done}");
                let create = format!(
                    "create secret generic {secret_name} --from-file={key}=/dev/stdin --dry-run=client -o yaml"
                );
                let arguments = read(&path, "arguments").unwrap();
                let all: Vec<&str> = arguments.lines().collect();
                assert_eq!((all[0], all.len()), (create.as_str(), if secret { 4 } else { 2 }), "{arguments}");
                let patch =
                    format!("patch secret {secret_name} --patch-file={}", path.path("secret").display());
                assert_eq!(all[1], format!("{patch} --dry-run=server"));
                assert!(all.get(3).is_none_or(|last| *last == patch), "{arguments}");
            }
            // Without the rights, without the Secret, or with an immutable one, nothing changes.
            for refuse in ["1", "2"] {
                let (done, _path, stand) = run_with(&words, vec![], refuse);
                assert_eq!((done.status, stand.connections()), (Some(1), 0), "{done}");
            }
            for refuse in ["3", "4"] {
                let (done, _path, _stand) = run_with(&words, lost(), refuse);
                assert_eq!(done.status, Some(6), "{done}");
            }
            // Ended before the program runs, which is then not begun, and while it does.
            let (mut command, path, stand) = job(&words, vec![]);
            let child = run::start(command.env("SLOW", "2"));
            assert!(wait_until(|| read(&path, "arguments").is_some_and(|all| all.lines().count() == 2)));
            run::send(&child, libc::SIGTERM);
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
            assert_eq!(stand.connections(), 0);
            let (mut command, _path, stand) = job(&words, silent_look());
            is_told_of(libc::SIGTERM, &mut command, &stand);
        }
    }
}

#[test]
fn kubernetes_mounts_each_index_its_own_client() {
    let all = documents("kubernetes-many.yaml");
    let (job, config) = (of_kind(&all, "Job"), of_kind(&all, "ConfigMap"));
    let ids = config["data"].as_hash().unwrap();
    assert_eq!(job["spec"]["completionMode"].as_str(), Some("Indexed"));
    assert_eq!(job["spec"]["backoffLimitPerIndex"].as_i64(), Some(2));
    assert_eq!(job["spec"]["completions"].as_i64(), Some(ids.len() as i64));
    for index in 0..ids.len() {
        let id = ids[&Yaml::String(index.to_string())].as_str().unwrap();
        assert!(docspace_rotate::cli::client_id(id.as_bytes()).is_ok(), "{id}");
    }
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["configMap"]["name"], config["metadata"]["name"]);
    let container = &pod["containers"][0];
    let mount = &container["volumeMounts"][0];
    assert_eq!(mount["subPathExpr"].as_str(), Some("$(JOB_COMPLETION_INDEX)"));
    assert_eq!(mount["mountPath"].as_str(), variable(container, "DOCSPACE_CLIENT_ID_FILE"));
}

#[test]
fn docker() {
    // Takes the environment and the mount from its arguments, as docker would, and runs the program.
    let docker = "while [ $# -gt 0 ]; do case $1 in\n\
        --env-file) while read -r line; do export \"$line\"; done < $2; shift 2 ;;\n\
        --user) shift 2 ;;\n\
        -v) mount=${2%%:*}; [ -d $mount ] && exit 125; shift 2 ;;\n\
        docspace-rotate:*) shift; break ;;\n\
        *) shift ;; esac; done\n\
        eval last=\\${$#}; [ $last = /client-secret ] || exit 99\n\
        exec $here/docspace-rotate --verify --no-newline --output $mount";
    for (status, steps, secret) in runs() {
        let (path, stand) = (path_with("docker", docker), Stand::script(steps));
        let lines: Vec<String> = recipe("docker.sh")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("#   ")?.to_owned()))
            .map(|line| match line.split_once('=').unwrap().0 {
                "DOCSPACE_BASE_URL" => format!("DOCSPACE_BASE_URL={}", stand.url()),
                "DOCSPACE_API_KEY" => format!("DOCSPACE_API_KEY={KEY}"),
                _ => line,
            })
            .collect();
        path.file("docspace.env", lines.join("\n") + "\n");
        let mut command = shell(&["sh", &format!("{HERE}/recipes/docker.sh")], &path, &stand);
        for variable in ["DOCSPACE_BASE_URL", "DOCSPACE_CLIENT_ID", "DOCSPACE_API_KEY"] {
            command.env_remove(variable);
        }
        let done = log_of(command.current_dir(path.as_ref()));
        assert_eq!(done.status, Some(status), "{done}");
        assert_eq!(read(&path, "client-secret").as_deref(), Some(if secret { SECRET } else { "" }), "{done}");
        let mode = fs::metadata(path.path("client-secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let arguments = read(&path, "arguments").unwrap();
        assert!(
            arguments.contains(" --read-only --cap-drop=ALL --security-opt=no-new-privileges "),
            "{arguments}"
        );
        let start = "run --rm --name docspace-rotate --read-only ";
        let user = fs::metadata(path.path("client-secret")).unwrap();
        let user = format!(" --user {}:{} --env-file docspace.env ", user.uid(), user.gid());
        assert!(arguments.starts_with(start) && arguments.contains(&user), "{arguments}");
        assert!(arguments.ends_with(" --verify --no-newline --output /client-secret\n"), "{arguments}");
    }
}

/// What the comments of the recipe say that the program says.
#[test]
fn docker_says_what_is_wrong_with_a_mount() {
    let folder = Folder::new();
    let stand = Stand::script(vec![]);
    let refused = run(run::rotate(&stand).arg("--output").arg(folder.as_ref()));
    assert_eq!(refused.status, Some(2), "{refused}");
    assert!(refused.error().contains(": Is a directory; nothing was sent"), "{refused}");
    assert!(recipe("docker.sh").contains("\"can't write to --output /client-secret: Is a directory\""));

    let key = folder.file("key", KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = run::rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &key);
    if fs::read(&key).is_ok() {
        // Root may read it.
        command.uid(65534).gid(65534);
    }
    if let Err(error) = command.stderr(Stdio::null()).status() {
        run::skipped("an unreadable key", &format!("no other user can run the program here: {error}"));
        return;
    }
    let error = "the file that it names can't be read: Permission denied";
    let refused = run(&mut command);
    assert_eq!(refused.status, Some(2), "{refused}");
    assert!(
        refused.error().contains(&format!("DOCSPACE_API_KEY_FILE: {error}; nothing was sent")),
        "{refused}"
    );
    assert!(recipe("docker.sh").contains(&format!("'{error}'")));
    assert_eq!(stand.connections(), 0);
}

#[test]
fn cron() {
    if !Path::new("/usr/bin/flock").exists() {
        run::skipped("recipes::cron", "no flock here");
        return;
    }
    let crontab = recipe("crontab");
    let line = crontab.lines().find(|line| !line.starts_with('#')).unwrap();
    let (_, command) = line.split_once("  app  ").unwrap();
    // To cron a percent sign is a newline.
    assert!(!command.contains('%'));
    let job = |path: &Folder, env: &str| {
        let here = path.as_ref().display().to_string();
        let mut script = command.replace("/var/lib/docspace-rotate/lock", &format!("{here}/locks/lock"));
        script = script.replace("/etc/docspace-rotate/env", &format!("{here}/{env}"));
        for folder in ["/usr/local/bin", "/etc/app", "/var/lib/docspace-rotate"] {
            script = script.replace(folder, &here);
        }
        log_of(run::command("/bin/sh").env("PATH", "/usr/bin:/bin").args(["-c", &script]))
    };
    let run_with = |path: &Folder, stand: &Stand| {
        let variables =
            format!("DOCSPACE_BASE_URL={} DOCSPACE_CLIENT_ID={CLIENT} DOCSPACE_API_KEY={KEY}", stand.url());
        // The last command of such a file may well end with 1.
        path.file("env", format!("export {variables}\n[ -n \"$HTTPS_PROXY\" ] && export HTTPS_PROXY\n"));
        job(path, "env")
    };
    let mail = |status| match status {
        0 => String::new(),
        _ => format!("docspace-rotate ended with {status}, see "),
    };
    for (status, steps, secret) in runs() {
        let (path, stand) = (path_with("unused", ""), Stand::script(steps));
        fs::create_dir(path.path("locks")).unwrap();
        path.file("client-secret", "old\n");
        let done = run_with(&path, &stand);
        assert!(done.stdout.starts_with(&mail(status)) && (status != 0 || done.stdout.is_empty()), "{done}");
        let stored = if secret { format!("{SECRET}\n") } else { "old\n".to_owned() };
        assert_eq!(read(&path, "client-secret"), Some(stored), "{done}");
        let log = read(&path, "log").unwrap();
        assert!(log.lines().next().unwrap().contains(" UTC ") && !log.contains(SECRET), "{log}");
        assert!(log.contains("[GET token] Status: "), "{log}");
    }
    // 66 without the folder of the lock, 69 without the program, and 1 while another run holds the lock.
    let (path, stand) = (path_with("unused", ""), Stand::script(vec![]));
    let log = || read(&path, "log").unwrap_or_default();
    assert!(run_with(&path, &stand).stdout.starts_with(&mail(66)));
    assert!(log().contains("flock: "), "{}", log());
    fs::create_dir(path.path("locks")).unwrap();
    fs::rename(path.path("docspace-rotate"), path.path("elsewhere")).unwrap();
    assert!(run_with(&path, &stand).stdout.starts_with(&mail(69)));
    assert!(log().contains("/docspace-rotate: "), "{}", log());
    fs::rename(path.path("elsewhere"), path.path("docspace-rotate")).unwrap();
    fs::remove_file(path.path("log")).unwrap();
    let flock = |option| {
        let mut command = Command::new("flock");
        command.arg(option).arg(path.path("locks/lock"));
        command
    };
    let mut holder = flock("--close").args(["sleep", "20"]).spawn().unwrap();
    assert!(wait_until(|| !flock("--nonblock").arg("true").status().unwrap().success()));
    assert!(run_with(&path, &stand).stdout.starts_with(&mail(1)));
    assert_eq!(log().lines().count(), 1, "{}", log());
    holder.kill().unwrap();
    holder.wait().unwrap();
    // Without the log, or the settings, cron mails what the shell says.
    fs::remove_file(path.path("log")).unwrap();
    fs::create_dir(path.path("log")).unwrap();
    let done = run_with(&path, &stand);
    assert!(done.stderr.contains("/log") && done.stdout.starts_with("docspace-rotate ended with "), "{done}");
    fs::remove_dir(path.path("log")).unwrap();
    let done = job(&path, "no-env");
    assert!(done.stderr.contains("/no-env") && done.status != Some(0), "{done}");
    assert_eq!(stand.connections(), 0);
}

/// Settings that only the engines themselves act on.
#[test]
fn settings_of_the_engines() {
    let settings: [(&str, &[&str]); 3] = [
        ("recipes/gitlab-ci.yml", &["resource_group: docspace-rotate", "timeout: 15 minutes"]),
        ("recipes/kubernetes.yaml", &["concurrencyPolicy: Forbid"]),
        ("Dockerfile", &["FROM scratch", "USER 65534:65534", "ENTRYPOINT [\"/docspace-rotate\"]"]),
    ];
    for (name, lines) in settings {
        let text = fs::read_to_string(format!("{HERE}/{name}")).unwrap();
        for line in lines {
            assert!(text.lines().any(|there| there.trim() == *line), "{name}: {line}");
        }
    }
}

/// The README has all that `--help` and the log have.
#[test]
fn the_readme_tells_what_the_program_does() {
    let readme = fs::read_to_string(format!("{HERE}/README.md")).unwrap();
    let words = HELP.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
    let named =
        words.filter(|word| word.starts_with("--") && word.len() > 2 || word.starts_with("DOCSPACE_"));
    let statuses =
        HELP.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  ")?.0.parse::<u8>().ok());
    let wanted: Vec<String> = named
        .map(str::to_owned)
        .chain(statuses.map(|status| format!("| {status} | ")))
        .chain(LOG.map(|line| format!("    {line}\n")))
        .chain(["default 120 |".to_owned(), "    The new secret is live.\n".to_owned()])
        .collect();
    assert!(wanted.len() > 30, "{wanted:?}");
    for wanted in wanted {
        assert!(readme.contains(&wanted), "{wanted}");
    }
}

/// The README's table names each recipe, and no other file.
#[test]
fn the_readme_names_the_recipes() {
    let readme = fs::read_to_string(format!("{HERE}/README.md")).unwrap();
    let mut named: Vec<&str> =
        readme.split("](recipes/").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    named.sort();
    let mut files: Vec<String> = fs::read_dir(format!("{HERE}/recipes"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(named, files);
}

/// The notes of a release are what changed in that version, and the sums of both platforms.
#[test]
fn release_notes() {
    let workflow = fs::read_to_string(format!("{HERE}/.github/workflows/release.yml")).unwrap();
    let workflow = yaml(&workflow);
    let steps = workflow["jobs"]["publish"]["steps"].as_vec().unwrap();
    let path = path_with("gh", "cp notes.md SHA256SUMS $here/");
    let work = Folder::new();
    for (runner, sum) in [("ubuntu-24.04", "0123  x86_64\n"), ("ubuntu-24.04-arm", "4567  arm64\n")] {
        let dist = work.path(&format!("dist-{runner}"));
        fs::create_dir(&dist).unwrap();
        fs::write(dist.join("SHA256SUMS"), sum).unwrap();
        fs::write(dist.join("docspace-rotate-x"), "").unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(dist.join("docspace-rotate-x.tar.gz"));
        tar.args(["--transform=s,^,docspace-rotate-x/,", "-C", HERE, "CHANGELOG.md"]);
        assert!(tar.status().unwrap().success());
    }
    let file = path.file("script", steps.last().unwrap()["run"].as_str().unwrap());
    let version = env!("CARGO_PKG_VERSION");
    let publish = || {
        // As the runner does where the shell is named.
        let mut command = run::command("bash");
        command.args(["--noprofile", "--norc", "-eo", "pipefail"]).arg(&file);
        command.env("PATH", path_of(&path));
        log_of(command.current_dir(work.as_ref()).env("GITHUB_REF_NAME", format!("v{version}")))
    };
    let done = publish();
    assert_eq!(done.status, Some(0), "{done}");
    let arguments = read(&path, "arguments").unwrap();
    assert!(arguments.starts_with(&format!("release create v{version} --verify-tag ")), "{arguments}");
    let all = "dist-ubuntu-24.04/docspace-rotate-x dist-ubuntu-24.04/docspace-rotate-x.tar.gz";
    assert!(arguments.contains(" SHA256SUMS dist-ubuntu-24.04-arm/") && arguments.contains(all));
    let notes = read(&path, "notes.md").unwrap();
    assert!(notes.starts_with(&format!("## {version}\n")) && !notes.contains("## 0.1.0"), "{notes}");
    assert!(notes.contains("-- COMMAND") && notes.contains("    0123  x86_64\n"), "{notes}");
    assert!(notes.contains("    4567  arm64\n"), "{notes}");

    assert_eq!(workflow["defaults"]["run"]["shell"].as_str(), Some("bash"));
    fs::write(work.path("dist-ubuntu-24.04/docspace-rotate-x.tar.gz"), "cut short").unwrap();
    let cut = publish();
    assert!(cut.status != Some(0) && read(&path, "arguments") == Some(arguments), "{cut}");
}

/// What names a version names this one.
#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let text = |name: &str| fs::read_to_string(format!("{HERE}/{name}")).unwrap();
    assert!(text("CHANGELOG.md").split("\n## ").nth(1).unwrap().starts_with(&format!("{version}\n")));
    let mut places = 0;
    let recipes = fs::read_dir(format!("{HERE}/recipes")).unwrap();
    let recipes = recipes.map(|file| format!("recipes/{}", file.unwrap().file_name().display()));
    for name in recipes.chain(["README.md".to_owned(), "Dockerfile".to_owned()]) {
        let text = text(&name);
        for before in ["docspace-rotate:", "ref: v", "image.version=\""] {
            for after in
                text.split(before).skip(1).filter(|after| after.starts_with(|c| char::is_ascii_digit(&c)))
            {
                assert!(after.starts_with(version), "{name}: {before}{}", after.lines().next().unwrap());
                places += 1;
            }
        }
    }
    assert!(places >= 10, "{places}");
}
