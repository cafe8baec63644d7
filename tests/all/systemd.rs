//! recipes/systemd: checked by systemd where it is, and its command run as systemd would.

use std::fs;
use std::process::Command;

use crate::mock::*;
use crate::project::*;
use crate::run::*;

/// systemd's measure of how exposed a service is, from 0 to 10, times 10.
const MAX_EXPOSURE: &str = "20";

/// Returns the value of a setting in a unit, which occurs once.
fn setting(unit: &str, name: &str) -> String {
    let unit = text(&format!("recipes/systemd/{unit}"));
    let start = format!("{name}=");
    let mut values = vec![];
    for line in unit.lines() {
        if let Some(value) = line.strip_prefix(&start) {
            values.push(value);
        }
    }
    assert_eq!(values.len(), 1, "{name}");
    values[0].to_owned()
}

#[test]
fn systemd_finds_nothing_wrong() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return skipped("systemd_finds_nothing_wrong", "no systemd-analyze here");
    }
    let folder = Folder::new();
    // It also checks that the program exists.
    let service = text("recipes/systemd/docspace-rotate.service");
    let program = env!("CARGO_BIN_EXE_docspace-rotate");
    let service = service.replace("/usr/local/bin/docspace-rotate", program);
    let service = folder.file("docspace-rotate.service", service);
    let timer = text("recipes/systemd/docspace-rotate.timer");
    let timer = folder.file("docspace-rotate.timer", timer);
    let mut app = "[Service]\nExecStart=/bin/true\n".to_owned();
    app += &text("recipes/systemd/app.conf");
    let app = folder.file("app.service", app);
    for unit in [&service, &timer, &app] {
        let found = analyze(&["verify", unit.to_str().unwrap()]);
        assert_eq!(found, "", "{}", unit.display());
    }
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    analyze(&[
        "security",
        "--offline=true",
        "--no-pager",
        &threshold,
        service.to_str().unwrap(),
    ]);
}

/// Returns what systemd-analyze prints, if it succeeds.
fn analyze(args: &[&str]) -> String {
    let mut command = command("systemd-analyze");
    command.args(args).env("PATH", "/usr/bin:/bin");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{args:?}\n{text}");
    text.into_owned()
}

#[test]
fn delivers_to_the_file_that_the_application_loads() {
    let folder = Folder::new();
    let key = folder.file("api-key", format!("{KEY}\n"));
    let start = setting("docspace-rotate.service", "ExecStart");
    let (program, args) = start.split_once(' ').unwrap();
    assert_eq!(program, "/usr/local/bin/docspace-rotate");
    let file = setting("app.conf", "LoadCredential");
    let (_name, file) = file.split_once(':').unwrap();
    let state = setting("docspace-rotate.service", "StateDirectory");
    assert_eq!(file, format!("/var/lib/{state}/client-secret"));
    assert!(args.ends_with(&format!("--output {file}")), "{args}");

    let portal = MockPortal::new(good_run().into_iter().chain([introspect()]).collect());
    let mut command = rotate(&portal);
    command
        .env_remove("DOCSPACE_API_KEY")
        .env("DOCSPACE_API_KEY_FILE", key);
    let args = args.replace(file, folder.path("client-secret").to_str().unwrap());
    let done = run(command.args(args.split(' ')));
    assert_eq!(done.status, Some(0), "{done}");
    let stored = fs::read_to_string(folder.path("client-secret")).unwrap();
    assert_eq!(stored, SECRET);
}

#[test]
fn runs_monthly_for_as_long_as_the_program_may_take() {
    assert_eq!(setting("docspace-rotate.timer", "OnCalendar"), "monthly");
    assert_eq!(setting("docspace-rotate.timer", "Persistent"), "true");
    assert_eq!(setting("docspace-rotate.service", "Type"), "oneshot");
    // The default limit of the program, and what may be in progress by then.
    assert_eq!(setting("docspace-rotate.service", "TimeoutStartSec"), "180");
    let key = setting("docspace-rotate.service", "LoadCredential");
    assert!(key.starts_with("api-key:"), "{key}");
}

/// A secret that was delivered is the only one that works, whatever failed or ended the run afterwards.
#[test]
fn restarts_the_application_unless_nothing_has_changed() {
    let stop = setting("docspace-rotate.service", "ExecStopPost");
    let script = stop.strip_prefix("+sh -c '").unwrap();
    // systemd makes one of two dollar signs.
    let script = script.strip_suffix('\'').unwrap().replace("$$", "$");
    let script = script.replace("systemctl", "echo");
    for (status, restarts) in [
        ("0", true),
        ("2", false),
        ("3", false),
        ("4", false),
        ("5", true),
        ("6", true),
        ("7", true),
        ("8", true),
        ("143", true),
        ("KILL", true),
    ] {
        let mut shell = command("sh");
        let run = run(shell
            .args(["-c", &script])
            .env("PATH", "/usr/bin:/bin")
            .env("EXIT_STATUS", status));
        let expected = if restarts {
            "--no-block try-restart app.service\n"
        } else {
            ""
        };
        assert_eq!(run.stdout, expected, "{status}");
    }
}

/// Whoever copies a recipe reads its head.
#[test]
fn the_prose_at_the_head_of_a_recipe_is_short() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes");
    for entry in [folder.to_owned(), format!("{folder}/systemd")] {
        for file in fs::read_dir(entry).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let count = prose_lines(&text);
            assert!(count <= 6, "{}: {count} lines", path.display());
        }
    }
}

/// Counts the lines of prose at the head. What is indented is to copy.
fn prose_lines(text: &str) -> usize {
    let mut count = 0;
    for line in text.lines() {
        if line.starts_with("#!") {
            continue;
        }
        if !line.starts_with('#') {
            break;
        }
        if line.len() > 1 && !line.starts_with("#   ") {
            count += 1;
        }
    }
    count
}
