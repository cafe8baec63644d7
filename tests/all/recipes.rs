//! The README's recipes, run as they stand there, with stand-ins for the stores.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::portal::{CLIENT, KEY, SECRET, Stand, Step, good_run, held, http, looked, on, reply, signed_in};
use crate::run::{self, Folder, run};

fn readme() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

/// The lines that stand deeper than the first line that ends in `opening`, behind `section`.
fn block(section: &str, opening: &str) -> String {
    let readme = readme();
    let (_, section) = readme.split_once(section).unwrap();
    let (before, rest) = section.split_once(&format!("{opening}\n")).unwrap();
    let depth = before.lines().last().unwrap().len();
    let inside = |line: &&str| line.len() - line.trim_start().len() > depth;
    let lines: Vec<&str> = rest.lines().take_while(inside).map(str::trim_start).collect();
    lines.join("\n")
}

/// A folder for PATH, with the program and a store that notes its arguments and its stdin, says
/// something and ends with a status.
fn path_with(store: &str, says: &str, status: i32) -> Folder {
    let folder = Folder::new();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_docspace-rotate"), folder.path("docspace-rotate"))
        .unwrap();
    let here = folder.as_ref().display().to_string();
    let script = format!(
        "#!/bin/sh\n[ \"$2\" = list ] && exit ${{LIST:-0}}\necho \"$@\" > {here}/arguments\ncat > {here}/stored\nprintf '{says}'\nexit {status}\n"
    );
    let store = folder.file(store, script);
    fs::set_permissions(store, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// What each status of a run looks like, and whether there is a new secret to store.
fn runs() -> Vec<(i32, Vec<Step>, bool)> {
    let proof = || on("POST introspect", reply("introspect-200"));
    let mut kept = good_run();
    kept[3] = on("DELETE revoke", reply("delete-403-unsigned"));
    let busy = on("PATCH regenerate", http("429 ", "Retry-After: 3600", ""));
    vec![
        (0, good_run().into_iter().chain([proof()]).collect(), true),
        (3, vec![on("GET token", reply("token-401"))], false),
        (4, looked([busy]), false),
        (5, kept, true),
        (7, looked([on("PATCH regenerate", reply("patch-500"))]), false),
        (8, good_run().into_iter().chain([on("POST introspect", reply("introspect-401"))]).collect(), true),
    ]
}

fn shell(program: &str, path: &Folder, stand: &Stand, script: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).args(["-e", "-c", script]);
    command.env("PATH", format!("{}:/usr/bin:/bin", path.as_ref().display()));
    command
        .env("DOCSPACE_BASE_URL", stand.url())
        .env("DOCSPACE_CLIENT_ID", CLIENT)
        .env("DOCSPACE_API_KEY", KEY);
    command
}

fn stored(path: &Folder, name: &str) -> Option<String> {
    fs::read_to_string(path.path(name)).ok()
}

#[test]
fn github_actions() {
    let script = block("### GitHub Actions", "run: |");
    for (status, steps, secret) in runs() {
        let (path, stand) = (path_with("gh", "", 0), Stand::script(steps));
        let done = run(&mut shell("bash", &path, &stand, &script));
        let masked = if secret { format!("::add-mask::{SECRET}\n") } else { String::new() };
        assert_eq!((done.status, done.stdout.as_str()), (Some(status), masked.as_str()), "{done}");
        assert_eq!(stored(&path, "stored"), secret.then(|| SECRET.to_owned()), "{done}");
        let arguments = secret.then(|| "secret set DOCSPACE_CLIENT_SECRET\n".to_owned());
        assert_eq!(stored(&path, "arguments"), arguments, "{done}");
    }
}

/// The status must not be one that says that nothing changed.
#[test]
fn a_store_that_does_not_take_it_is_1() {
    let failures = [
        ("### GitHub Actions", "run: |", "gh", "", 4),
        ("### GitLab CI", "- |", "curl", "302", 0),
        ("### GitLab CI", "- |", "curl", "", 7),
    ];
    for (section, opening, store, says, status) in failures {
        let script = block(section, opening);
        let (_, steps, _) = runs().swap_remove(0);
        let (path, stand) = (path_with(store, says, status), Stand::script(steps));
        let mut command = shell("bash", &path, &stand, &script);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{section}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET), "{section}");
    }
}

#[test]
fn gitlab_ci() {
    let script = block("### GitLab CI", "- |");
    for (status, steps, secret) in runs() {
        let (path, stand) = (path_with("curl", "200", 0), Stand::script(steps));
        let mut command = shell("sh", &path, &stand, &script);
        command.envs([
            ("VARIABLES_TOKEN", "token"),
            ("CI_API_V4_URL", "https://gitlab.invalid/api/v4"),
            ("CI_PROJECT_ID", "7"),
        ]);
        let done = run(&mut command);
        assert_eq!((done.status, done.stdout.as_str()), (Some(status), ""), "{done}");
        assert_eq!(stored(&path, "stored"), secret.then(|| SECRET.to_owned()), "{done}");
        if let Some(arguments) = stored(&path, "arguments") {
            let wanted = "-sS -o /dev/null -w %{http_code} -X PUT -H PRIVATE-TOKEN: token --data-urlencode value@- \
                -d masked=true https://gitlab.invalid/api/v4/projects/7/variables/DOCSPACE_CLIENT_SECRET\n";
            assert_eq!(arguments, wanted);
        }
    }
}

#[test]
fn cron() {
    if !Path::new("/usr/bin/flock").exists() {
        run::skipped("cron", "no flock here");
        return;
    }
    let readme = readme();
    let (_, section) = readme.split_once("### cron").unwrap();
    let line = section.lines().find(|line| line.starts_with("17 3 1")).unwrap();
    let (_, command) = line.split_once("  app  ").unwrap();
    for (status, steps, secret) in runs() {
        let (path, stand) = (path_with("unused", "", 0), Stand::script(steps));
        path.file(
            "env",
            format!(
                "export DOCSPACE_BASE_URL={} DOCSPACE_CLIENT_ID={CLIENT} DOCSPACE_API_KEY={KEY}",
                stand.url()
            ),
        );
        path.file("client-secret", "old\n");
        let here = path.as_ref().display().to_string();
        let mut script = command.to_owned();
        for folder in ["/etc/docspace-rotate", "/run/lock", "/usr/local/bin", "/etc/app", "/var/log/app"] {
            script = script.replace(folder, &here);
        }
        let mut mailed = Command::new("/bin/sh");
        mailed.env_clear().env("PATH", format!("{here}:/usr/bin:/bin")).args(["-c", &script]);
        let done = run(&mut mailed);
        let mail = format!("docspace-rotate failed with {status}, see its log\n");
        assert_eq!(done.stdout, if status == 0 { "" } else { &mail }, "{done}");
        let file = if secret { format!("{SECRET}\n") } else { "old\n".to_owned() };
        assert_eq!(stored(&path, "client-secret"), Some(file), "{done}");
        assert!(!stored(&path, "docspace-rotate.log").unwrap().contains(SECRET));
    }
}

/// The arguments of the Kubernetes job's two containers of the program.
#[test]
fn kubernetes() {
    let readme = readme();
    let (_, section) = readme.split_once("### Kubernetes").unwrap();
    let folder = Folder::new();
    let new = folder.path("client-secret");
    let args: Vec<Vec<String>> = section
        .lines()
        .filter_map(|line| line.trim().strip_prefix("args: [")?.strip_suffix(']'))
        .map(|line| {
            line.split(", ").map(|arg| arg.replace("/new/client-secret", new.to_str().unwrap())).collect()
        })
        .collect();
    assert_eq!(args.len(), 2, "{args:?}");
    let key = folder.file("key", KEY);
    let scripts = [
        looked([on("PATCH regenerate", reply("patch-200"))]),
        signed_in([on("DELETE revoke", reply("delete-200"))]),
    ];
    for (args, script) in args.iter().zip(scripts) {
        let stand = Stand::script(script);
        let mut command = run::program();
        command.args(args).env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_CLIENT_ID", CLIENT);
        let done = run(command.env("DOCSPACE_API_KEY_FILE", &key));
        assert_eq!((done.status, done.stdout.as_str()), (Some(0), ""), "{done}");
    }
    assert_eq!(fs::read_to_string(new).unwrap(), format!("{SECRET}\n"));
}

#[test]
fn a_traced_shell_shows_no_secret() {
    for (section, opening, store, program) in
        [("### GitHub Actions", "run: |", "gh", "bash"), ("### GitLab CI", "- |", "curl", "sh")]
    {
        let script = format!("set -x\n{}", block(section, opening));
        let (_, steps, _) = runs().swap_remove(0);
        let (path, stand) = (path_with(store, "200", 0), Stand::script(steps));
        let done = run(&mut shell(program, &path, &stand, &script));
        assert_eq!(done.status, Some(0), "{done}");
        assert_eq!(stored(&path, "stored").as_deref(), Some(SECRET));
    }
}

#[test]
fn a_store_that_is_not_open_to_the_job_costs_nothing() {
    let script = block("### GitHub Actions", "run: |");
    let (path, stand) = (path_with("gh", "", 0), Stand::script(vec![]));
    let status = shell("bash", &path, &stand, &script).env("LIST", "4").status().unwrap();
    assert_eq!((status.code(), stand.connections()), (Some(1), 0));
}

#[test]
fn a_cancelled_job_stores_what_came() {
    for (section, opening, store, program) in
        [("### GitHub Actions", "run: |", "gh", "bash"), ("### GitLab CI", "- |", "curl", "sh")]
    {
        let script = block(section, opening);
        let (_, mut steps, _) = runs().swap_remove(0);
        let (answer, step) = held("DELETE revoke", reply("delete-200"));
        steps[3] = step;
        let (path, stand) = (path_with(store, "200", 0), Stand::script(steps));
        let mut command = shell(program, &path, &stand, &script);
        let child = run::start(&mut command);
        stand.wait_for(4);
        run::send(&child, libc::SIGTERM);
        drop(answer);
        child.wait_with_output().unwrap();
        assert_eq!(stored(&path, "stored").as_deref(), Some(SECRET), "{section}");
    }
}
