//! The files in recipes/, run as they are under the shells that they meet, with stubs for the stores.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command};

use docspace_rotate::cli::HELP;
use yaml_rust2::{Yaml, YamlLoader};

use crate::mock::*;
use crate::project::*;
use crate::run::*;

/// What a call of any store does first: it notes its arguments, and is paused or refused if it has this number.
const STORE: &str = "echo \"$@\" >> $here/arguments
n=$(wc -l < $here/arguments)
n=$((n))
[ $n != \"$PAUSE\" ] || until [ -e $here/go ]; do sleep 0.01; done
[ $n != \"$REFUSE\" ] || { echo '403 Forbidden' >&2; exit 1; }
";

/// A recipe's script, ready to run against a portal.
struct Job {
    command: Command,
    /// The first folder on the command's PATH, with the program and a store.
    folder: Folder,
    portal: MockPortal,
}

impl Job {
    /// Returns a job that finds the program, its settings, and a store that goes on with this script.
    fn new(shell: &[&str], store: &str, script: &str, expected: Vec<Expect>) -> Job {
        let folder = Folder::new();
        let portal = MockPortal::new(expected);
        let program = env!("CARGO_BIN_EXE_docspace-rotate");
        symlink(program, folder.path("docspace-rotate")).unwrap();
        stub(&folder, store, &format!("{STORE}{script}"));
        let mut command = command(shell[0]);
        command
            .args(&shell[1..])
            .env("PATH", path_with(folder.as_ref()))
            .env("DOCSPACE_BASE_URL", portal.url())
            .env("DOCSPACE_API_KEY", KEY)
            .env("DOCSPACE_CLIENT_ID", CLIENT);
        Job {
            command,
            folder,
            portal,
        }
    }

    /// Returns the arguments of all calls of the store, a line each.
    fn calls(&self) -> String {
        read(&self.folder, "arguments").unwrap_or_default()
    }

    /// Starts the job, and pauses the call of the store that has this number.
    fn start_and_pause(&mut self, call: usize) -> Child {
        let child = start(self.command.env("PAUSE", call.to_string()));
        assert!(wait_until(|| self.calls().lines().count() == call));
        child
    }
}

/// A run of a job, in which something may fail.
#[derive(Default)]
struct Case {
    name: &'static str,
    /// The number of the call that the store refuses.
    refuse: &'static str,
    script: Vec<Expect>,
    status: i32,
    /// The secret that the store then has, if there is a new one.
    stored: Option<&'static str>,
}

impl Case {
    /// Runs the job, and checks its status.
    fn run(&mut self, job: impl Fn(Vec<Expect>) -> Job) -> Job {
        let script = std::mem::take(&mut self.script);
        let reaches_portal = !script.is_empty();
        let mut job = job(script);
        let done = log_of(job.command.env("REFUSE", self.refuse));
        assert_eq!(done.status, Some(self.status), "{done}");
        assert_eq!(job.portal.connections() > 0, reaches_portal, "{done}");
        job
    }
}

fn run_all<const N: usize>(cases: [Case; N], job: impl Fn(Vec<Expect>) -> Job) {
    for mut case in cases {
        let _case = Named(case.name);
        case.run(&job);
    }
}

/// Returns a good run, one that changes nothing, and one that fails after the delivery.
fn cases() -> [Case; 3] {
    let verify = |reply| {
        let mut script = good_run();
        script.push(expect("POST introspect", reply));
        script
    };
    let busy = response("429 ", "Retry-After: 3600", "");
    [
        Case {
            name: "a good run",
            script: verify(recorded("introspect-200")),
            stored: Some(SECRET),
            ..Case::default()
        },
        Case {
            name: "a busy portal",
            script: ready([expect("PATCH regenerate", busy)]),
            status: 4,
            ..Case::default()
        },
        Case {
            name: "a portal that cannot be asked",
            script: verify(json("{}")),
            status: 8,
            stored: Some(SECRET),
            ..Case::default()
        },
    ]
}

/// Returns a run in which the store refuses a call before the program starts.
fn before_the_run(name: &'static str, refuse: &'static str) -> Case {
    Case {
        name,
        refuse,
        status: 1,
        ..Case::default()
    }
}

/// Returns a run in which the store refuses a call that delivers the secret.
fn at_the_delivery(name: &'static str, refuse: &'static str) -> Case {
    Case {
        name,
        refuse,
        script: ready([regenerate()]),
        status: 6,
        ..Case::default()
    }
}

/// Sends a signal to a job that waits for the portal: the program gets it and says what state the client is in.
#[track_caller]
fn is_told_of(signal: i32, job: impl Fn(Vec<Expect>) -> Job) {
    let silent = expect_then("HEAD client", [Action::Hang]);
    let mut job = job(vec![sign_in(), silent]);
    let child = start(&mut job.command);
    job.portal.wait_for(2);
    send(&child, signal);
    let done = finish(&job.command, child);
    done.fails_with(128 + signal, "; the client's secret is unchanged");
}

/// Returns those shells of the recipes that this machine has.
fn shells() -> Vec<&'static [&'static str]> {
    let mut shells = vec![
        &["bash", "-e"][..],
        &["dash", "-e"],
        &["busybox", "ash", "-e"],
    ];
    shells.retain(|shell| {
        let exists = Command::new(shell[0]).arg("--help").output().is_ok();
        if !exists {
            skipped("recipes", &format!("no {} here", shell[0]));
        }
        exists
    });
    shells
}

/// Checks that a file has these lines, whatever their indentation.
#[track_caller]
fn has_lines(name: &str, lines: &str) {
    let text = text(name);
    for line in lines.lines() {
        let is_same = |other: &str| other.trim().trim_start_matches("- ") == line.trim();
        assert!(text.lines().any(is_same), "{name}: {line}");
    }
}

#[test]
fn github_actions() {
    let name = "recipes/github-actions.yml";
    has_lines(
        name,
        "permissions: { contents: read }
        timeout-minutes: 15
        concurrency: { group: docspace-rotate, cancel-in-progress: false }",
    );
    let steps = &yaml(&text(name))["jobs"]["rotate"]["steps"];
    let script = steps[1]["run"].as_str().unwrap();
    let gh = "[ $n = 1 ] || exec cat > $here/stored";
    let job = |expected| {
        // The runner's command if the step names no shell.
        let mut job = Job::new(&["bash", "-e"], "gh", gh, expected);
        job.command
            .arg(job.folder.file("script", script))
            .env("GH_TOKEN", TOKEN);
        job
    };
    for mut case in cases() {
        let _case = Named(case.name);
        let job = case.run(job);
        assert_eq!(read(&job.folder, "stored").as_deref(), case.stored);
        let calls = job.calls();
        let first = "secret set DOCSPACE_ROTATE_STARTED --body ";
        assert!(calls.starts_with(first), "{calls}");
        let delivers = calls.ends_with("\nsecret set DOCSPACE_CLIENT_SECRET\n");
        assert_eq!(delivers, case.stored.is_some(), "{calls}");
    }
    let faults = [
        before_the_run("a token that can only read", "1"),
        at_the_delivery("a store that fails", "2"),
    ];
    run_all(faults, job);
    is_told_of(libc::SIGINT, job);
}

const GITLAB: &str = "recipes/gitlab-ci.yml";

/// Returns a job for GitLab's script, under a shell as the runner starts it.
fn gitlab_job(shell: &[&str], expected: Vec<Expect>) -> Job {
    let rotate = &yaml(&text(GITLAB))["rotate"];
    let mut script = String::new();
    for line in rotate["script"].as_vec().unwrap() {
        script += line.as_str().unwrap();
        script += "\n";
    }
    let glab = "[ \"$GITLAB_TOKEN\" = token-of-the-store ] || exit 98
        [ $2 = get ] && exec echo token-of-the-store
        cat > $here/stored.$n";
    let wget = "[ \"$REFUSE\" != wget ] && [ \"$*\" = \"-O docspace-rotate $BINARY\" ] || exit 1
        [ \"$REFUSE\" != checksum ] || exec cp /bin/true $2
        ln -s $here/docspace-rotate $2";
    let as_runner = "CHECKSUM=$(sha256sum < $PROGRAM | cut -c 1-64)
        set -o errexit; : | eval \"$SCRIPT\"; exit 0";
    let mut job = Job::new(shell, "glab", glab, expected);
    stub(&job.folder, "wget", wget);
    let project = job.folder.path("project");
    fs::create_dir(&project).unwrap();
    job.command
        .current_dir(project)
        .env("GITLAB_TOKEN", TOKEN)
        .env("BINARY", rotate["variables"]["BINARY"].as_str().unwrap())
        .env("PROGRAM", env!("CARGO_BIN_EXE_docspace-rotate"))
        .args(["-c", as_runner])
        .env("SCRIPT", script);
    job
}

#[test]
fn gitlab_ci() {
    assert!(text(GITLAB).lines().count() <= 35);
    let releases = "https://github.com/your-organization/docspace-rotate/releases";
    let binary = format!("docspace-rotate-{VERSION}-x86_64-unknown-linux-gnu");
    let lines = format!(
        "resource_group: docspace-rotate
        timeout: 15 minutes
        GITLAB_TOKEN: $VARIABLES_TOKEN
        BINARY: {releases}/download/v{VERSION}/{binary}"
    );
    has_lines(GITLAB, &lines);
    let before = "variable get DOCSPACE_CLIENT_SECRET\nvariable update DOCSPACE_ROTATE_STARTED\n";
    // Without --masked the secret would no longer be masked.
    let update = "variable update DOCSPACE_CLIENT_SECRET --masked --protected --raw\n";
    for shell in shells() {
        let job = |expected| gitlab_job(shell, expected);
        for mut case in cases() {
            let _case = Named(case.name);
            let job = case.run(job);
            assert_eq!(read(&job.folder, "stored.3").as_deref(), case.stored);
            let delivery = if case.stored.is_some() { update } else { "" };
            assert_eq!(job.calls(), format!("{before}{delivery}"));
        }
        let faults = [
            before_the_run("no such variable", "1"),
            before_the_run("a token that can only read", "2"),
            before_the_run("no binary", "wget"),
            before_the_run("another binary", "checksum"),
            at_the_delivery("a store that fails", "3"),
        ];
        run_all(faults, job);
    }
}

/// The signal goes to the whole group, without a terminal.
#[test]
fn gitlab_waits_for_the_delivery_of_a_cancelled_job() {
    for shell in shells() {
        let mut job = gitlab_job(shell, ready([regenerate()]));
        in_new_session(&mut job.command);
        let child = job.start_and_pause(3);
        kill(-(child.id() as i32), libc::SIGTERM);
        job.folder.file("go", "");
        let done = finish(&job.command, child);
        let error = "docspace-rotate: ended by SIGTERM after the delivery; ";
        assert!(done.stderr.contains(error), "{done}");
        assert_eq!(read(&job.folder, "stored.3").as_deref(), Some(SECRET));
    }
}

/// A recipe for Kubernetes, the Secret that it writes, and the key in it.
struct Manifest {
    name: &'static str,
    secret: &'static str,
    key: &'static str,
}

const ONE_CLIENT: Manifest = Manifest {
    name: "recipes/kubernetes.yaml",
    secret: "docspace-client",
    key: "client-secret",
};

const MANY_CLIENTS: Manifest = Manifest {
    name: "recipes/kubernetes-many.yaml",
    secret: "docspace-clients",
    key: CLIENT,
};

impl Manifest {
    /// Returns the specification of the pod.
    fn pod(&self) -> Yaml {
        let document = yaml(&text(self.name));
        let mut job = &document["spec"];
        if document["kind"].as_str() == Some("CronJob") {
            job = &job["jobTemplate"]["spec"];
        }
        job["template"]["spec"].clone()
    }

    fn job(&self, shell: &[&str], expected: Vec<Expect>) -> Job {
        let kubectl = "case $1 in create) exec cat /dev/stdin ;; esac
            case \"$*\" in *--dry-run=server*) exit ;; esac
            cp secret stored";
        let container = &self.pod()["containers"][0];
        assert_eq!(container["command"], yaml("[sh, -ec]"));
        let script = container["args"][0].as_str().unwrap();
        let mut job = Job::new(shell, "kubectl", kubectl, expected);
        job.command
            .current_dir(job.folder.as_ref())
            .arg("-c")
            .arg(script.replace("/tmp/secret", "secret"))
            .env_remove("DOCSPACE_API_KEY")
            .env("DOCSPACE_API_KEY_FILE", job.folder.file("key", KEY));
        if self.key == CLIENT {
            job.command
                .env_remove("DOCSPACE_CLIENT_ID")
                .env("DOCSPACE_CLIENT_ID_FILE", job.folder.file("id", CLIENT));
        }
        job
    }

    /// Runs the script of the pod.
    fn stores_the_secret(&self) {
        let Manifest { secret, key, .. } = self;
        let create = format!(
            "create secret generic {secret} --from-file={key}=/dev/stdin --dry-run=client -o yaml\n"
        );
        let patch = format!("patch secret {secret} --patch-file=secret");
        let rehearsal = format!("{create}{patch} --dry-run=server\n");
        let delivery = format!("{create}{patch}\n");
        for shell in shells() {
            let job = |expected| self.job(shell, expected);
            for mut case in cases() {
                let _case = Named(case.name);
                let job = case.run(job);
                assert_eq!(read(&job.folder, "stored").as_deref(), case.stored);
                let delivery = if case.stored.is_some() {
                    &*delivery
                } else {
                    ""
                };
                assert_eq!(job.calls(), format!("{rehearsal}{delivery}"));
            }
            let faults = [
                before_the_run("no rights, no Secret, or an immutable one", "2"),
                at_the_delivery("no manifest: the one of before is not stored", "3"),
                at_the_delivery("a store that fails", "4"),
            ];
            run_all(faults, job);
            is_told_of(libc::SIGTERM, job);
            // Ended before the program runs, which then never starts.
            let mut job = job(vec![]);
            let child = job.start_and_pause(2);
            send(&child, libc::SIGTERM);
            job.folder.file("go", "");
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(143));
            assert_eq!(job.portal.connections(), 0);
        }
    }
}

#[test]
fn kubernetes() {
    ONE_CLIENT.stores_the_secret();
    let lines = "activeDeadlineSeconds: 900
        action: FailJob";
    has_lines(ONE_CLIENT.name, lines);
    grants_only_what_is_needed(&ONE_CLIENT, "docspace-rotate");
}

#[test]
fn kubernetes_many() {
    MANY_CLIENTS.stores_the_secret();
    let lines = "activeDeadlineSeconds: 7200
        action: FailIndex
        completionMode: Indexed
        backoffLimitPerIndex: 2
        { name: DOCSPACE_CLIENT_ID_FILE, value: /client-id }
        { name: client-ids, mountPath: /client-id, subPathExpr: $(JOB_COMPLETION_INDEX), readOnly: true }
        { name: client-ids, configMap: { name: docspace-client-ids } }
        metadata: { name: docspace-client-ids }";
    has_lines(MANY_CLIENTS.name, lines);
    grants_only_what_is_needed(&MANY_CLIENTS, "docspace-rotate-many");
}

/// The account can do what the script does, and no more. The pod is admitted under the level `restricted`.
#[track_caller]
fn grants_only_what_is_needed(manifest: &Manifest, account: &str) {
    let secret = manifest.secret;
    let lines = format!(
        "rules: [{{ apiGroups: [\"\"], resources: [secrets], verbs: [get, patch], resourceNames: [{secret}] }}]
        roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: Role, name: {account} }}
        subjects: [{{ kind: ServiceAccount, name: {account} }}]
        serviceAccountName: {account}
        onExitCodes: {{ containerName: rotate, operator: NotIn, values: [0, 4] }}
        restartPolicy: Never
        terminationGracePeriodSeconds: 160
        runAsNonRoot: true
        runAsUser: 65534
        seccompProfile: {{ type: RuntimeDefault }}
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {{ drop: [ALL] }}"
    );
    has_lines(manifest.name, &lines);
}

/// Returns the names of the entries of a list.
fn names(list: &Yaml) -> Vec<&str> {
    let entries = list.as_vec().unwrap().iter();
    entries
        .map(|entry| entry["name"].as_str().unwrap())
        .collect()
}

/// Each mount has its volume, and each file of a variable its mount.
#[test]
fn kubernetes_mounts_what_the_pod_reads() {
    for manifest in [ONE_CLIENT, MANY_CLIENTS] {
        let pod = manifest.pod();
        let container = &pod["containers"][0];
        let mounts = &container["volumeMounts"];
        assert_eq!(names(mounts), names(&pod["volumes"]));
        for entry in container["env"].as_vec().unwrap() {
            let name = entry["name"].as_str().unwrap();
            let value = entry["value"].as_str().unwrap();
            let is_in = |mount: &Yaml| value.starts_with(mount["mountPath"].as_str().unwrap());
            let is_mounted = mounts.as_vec().unwrap().iter().any(is_in);
            assert_eq!(is_mounted, name.ends_with("_FILE"), "{name}");
        }
    }
}

#[test]
fn kubernetes_has_an_index_for_each_client() {
    let documents = YamlLoader::load_from_str(&text(MANY_CLIENTS.name)).unwrap();
    let [.., config, job] = &documents[..] else {
        panic!("{documents:?}")
    };
    let ids = config["data"].as_hash().unwrap();
    let count = ids.len() as i64;
    assert_eq!(job["spec"]["completions"].as_i64(), Some(count));
    for index in 0..count {
        assert!(ids.contains_key(&Yaml::String(index.to_string())));
    }
}

#[test]
fn docker() {
    // Takes the environment and the mount from its arguments, as docker would, and runs the program.
    let docker = "while [ $# -gt 0 ]; do case $1 in
        --env-file) while read -r line; do export \"$line\"; done < $2; shift 2 ;;
        -v) mount=${2%%:*}; [ -d $mount ] && exit 125; shift 2 ;;
        */docspace-rotate:*) shift; break ;;
        *) shift ;; esac; done
        [ \"$*\" = '--verify --no-newline --output /client-secret' ] || exit 99
        exec $here/docspace-rotate --verify --no-newline --output $mount";
    let recipe = text("recipes/docker.sh");
    let mut settings = String::new();
    for line in recipe.lines() {
        if let Some(setting) = line.strip_prefix("#   ") {
            settings += setting;
            settings += "\n";
        }
    }
    let job = |expected| {
        let mut job = Job::new(&["sh"], "docker", docker, expected);
        let settings = settings
            .replace("https://your-portal.example", &job.portal.url())
            .replace("sk-...", KEY);
        job.folder.file("docspace.env", settings);
        job.command
            .arg(job.folder.file("docker.sh", &recipe))
            .current_dir(job.folder.as_ref())
            .env_remove("DOCSPACE_API_KEY");
        job
    };
    for mut case in cases() {
        let _case = Named(case.name);
        let job = case.run(job);
        let secret = read(&job.folder, "client-secret").unwrap();
        assert_eq!(secret, case.stored.unwrap_or_default());
        let file = fs::metadata(job.folder.path("client-secret")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        let start = "run --rm --name docspace-rotate --read-only --cap-drop=ALL --security-opt=no-new-privileges";
        let user = format!("{}:{}", file.uid(), file.gid());
        let expected = format!("{start} --user {user} --env-file docspace.env -v ");
        let calls = job.calls();
        assert!(calls.starts_with(&expected), "{calls}");
    }
    let lines = "FROM scratch
        USER 65534:65534
        ENTRYPOINT [\"/docspace-rotate\"]";
    has_lines("Dockerfile", lines);
}

/// Returns the command of the crontab as a job in a folder, with an old secret and without a folder for the lock.
/// Returns None where there is no flock(1).
fn cron_job(expected: Vec<Expect>) -> Option<Job> {
    if !Path::new("/usr/bin/flock").exists() {
        skipped("recipes::cron", "no flock here");
        return None;
    }
    let crontab = text("recipes/crontab");
    let (_, script) = crontab.trim_end().rsplit_once("  app  ").unwrap();
    // To cron a percent sign is a newline.
    assert!(!script.contains('%'));
    let mut job = Job::new(&["/bin/sh", "-c"], "unused", "", expected);
    let here = job.folder.as_ref().to_str().unwrap();
    let mut script = script.replace("rotate/lock", "rotate/locks/lock");
    for folder in [
        "/usr/local/bin",
        "/etc/app",
        "/var/lib/docspace-rotate",
        "/etc/docspace-rotate",
    ] {
        script = script.replace(folder, here);
    }
    let url = job.portal.url();
    let settings =
        format!("DOCSPACE_BASE_URL={url} DOCSPACE_CLIENT_ID={CLIENT} DOCSPACE_API_KEY={KEY}");
    // The last command of such a file may well fail.
    let env = format!("export {settings}\n[ -n \"$HTTPS_PROXY\" ] && :\n");
    job.folder.file("env", env);
    job.folder.file("client-secret", "old\n");
    job.command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .arg(script);
    Some(job)
}

/// Runs a job, and checks that cron mails its status, except 0.
#[track_caller]
fn assert_mail(job: &mut Job, status: i32) {
    let log = job.folder.path("log");
    let mut mail = format!(
        "docspace-rotate ended with {status}, see {}\n",
        log.display()
    );
    if status == 0 {
        mail.clear();
    }
    assert_eq!(log_of(&mut job.command).stdout, mail);
}

#[test]
fn cron() {
    for case in cases() {
        let _case = Named(case.name);
        let Some(mut job) = cron_job(case.script) else {
            return;
        };
        fs::create_dir(job.folder.path("locks")).unwrap();
        assert_mail(&mut job, case.status);
        let stored = format!("{}\n", case.stored.unwrap_or("old"));
        assert_eq!(read(&job.folder, "client-secret"), Some(stored));
        let log = read(&job.folder, "log").unwrap();
        assert!(log.lines().next().unwrap().contains(" UTC "), "{log}");
        assert!(log.contains("[GET token] Status: "), "{log}");
        assert!(!log.contains(SECRET), "{log}");
    }
}

#[test]
fn cron_starts_nothing_without_the_lock_or_the_program() {
    let Some(mut job) = cron_job(vec![]) else {
        return;
    };
    // The folder of the lock is missing.
    assert_mail(&mut job, 66);
    fs::create_dir(job.folder.path("locks")).unwrap();
    let program = job.folder.path("docspace-rotate");
    let elsewhere = job.folder.path("elsewhere");
    fs::rename(&program, &elsewhere).unwrap();
    assert_mail(&mut job, 69);
    fs::rename(&elsewhere, &program).unwrap();
    // Another run has the lock.
    let lock = fs::File::open(job.folder.path("locks/lock")).unwrap();
    // SAFETY: a plain system call on an open file.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    assert_mail(&mut job, 1);
    assert_eq!(job.portal.connections(), 0);
}

/// The shell of a CI job ends at the first command that fails, or when the job is cancelled.
#[test]
fn the_readme_stores_a_secret_that_was_printed_in_any_case() {
    let readme = text("README.md");
    let start = readme.find("    trap : HUP INT TERM").unwrap();
    let (script, _) = readme[start..].split_once("\n\n").unwrap();
    let script = format!("export JOB=$$\n{script}");
    let refused = |call| expect(call, response("403 ", "", ""));
    let not_revoked = ready([regenerate(), refused("DELETE revoke")]);
    let not_changed = ready([refused("PATCH regenerate")]);
    let (store, cancel) = ("cat > stored", "kill -TERM $JOB");
    let mask = format!("::add-mask::{SECRET}\n");
    for (name, replies, afterwards, store, status, stdout, stored) in [
        ("good", good_run(), ":", store, 0, &*mask, Some(SECRET)),
        (
            "not revoked",
            not_revoked,
            ":",
            store,
            5,
            &mask,
            Some(SECRET),
        ),
        (
            "cancelled",
            good_run(),
            cancel,
            store,
            0,
            &mask,
            Some(SECRET),
        ),
        ("not stored", good_run(), ":", "exit 1", 6, &mask, None),
        ("refused", not_changed, ":", store, 3, "", None),
    ] {
        let _case = Named(name);
        let folder = Folder::new();
        let program = format!("\"$PROGRAM\"; status=$?; {afterwards}; exit $status");
        stub(&folder, "docspace-rotate", &program);
        stub(&folder, "store", store);
        let portal = MockPortal::new(replies);
        let mut shell = command("sh");
        set_portal(&mut shell, &portal);
        shell
            .args(["-e", "-c", &script])
            .env("PATH", path_with(folder.as_ref()))
            .env("PROGRAM", env!("CARGO_BIN_EXE_docspace-rotate"))
            .env("DOCSPACE_CLIENT_ID", CLIENT)
            .current_dir(folder.as_ref());
        let output = shell.output().unwrap();
        let run = Run::of(&shell, &output);
        assert_eq!(run.status, Some(status), "{run}");
        assert_eq!(run.stdout, stdout, "{run}");
        assert_eq!(read(&folder, "stored").as_deref(), stored, "{run}");
    }
}

/// Returns the names that the README links to as recipes, sorted.
fn linked_recipes() -> Vec<String> {
    let mut names = vec![];
    for rest in text("README.md").split("](recipes/").skip(1) {
        let (name, _) = rest.split_once(')').unwrap();
        names.push(name.to_owned());
    }
    names.sort();
    names
}

/// The README has all options, variables and statuses, and what a good run logs.
#[test]
fn readme() {
    let readme = text("README.md");
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    for word in HELP.split(|c| !is_part(c)) {
        let is_option = word.len() > 2 && word.starts_with("--");
        if is_option && !["--help", "--version"].contains(&word) || word.starts_with("DOCSPACE_") {
            assert!(readme.contains(word), "{word}");
        }
    }
    for status in 2..=8 {
        assert!(readme.contains(&format!("| {status} | ")), "{status}");
    }
    for line in GOOD_RUN_LOG {
        assert!(readme.contains(&format!("    {line}\n")), "{line}");
    }
    let mut names = vec![];
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes")).unwrap() {
        names.push(file.unwrap().file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(linked_recipes(), names);
}

/// Each version of this program in a text that users read or copy is this one.
#[test]
fn the_version_is_the_same_everywhere() {
    let changes = text("CHANGELOG.md");
    let (_, latest) = changes.split_once("\n## ").unwrap();
    assert!(latest.starts_with(&format!("{VERSION}\n")));
    let mut files = vec!["README.md".to_owned(), "Dockerfile".to_owned()];
    for name in linked_recipes() {
        // The units for systemd name no version.
        if name != "systemd" {
            files.push(format!("recipes/{name}"));
        }
    }
    let mut places = 0;
    for name in files {
        for before in [
            "docspace-rotate:",
            "docspace-rotate@v",
            "docspace-rotate-",
            "download/v",
            "version=\"",
        ] {
            for after in text(&name).split(before).skip(1) {
                let is_end = |c: char| !c.is_ascii_digit() && c != '.';
                let version = after.split(is_end).next().unwrap();
                if version.split('.').count() == 3 {
                    assert_eq!(version, VERSION, "{name}: {before}{version}");
                    places += 1;
                }
            }
        }
    }
    assert!(places >= 12, "{places}");
}
