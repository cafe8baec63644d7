//! The command line and the environment: a mistake gets one line, and nothing is sent.

use std::fs::{self, File};
use std::io::pipe;
use std::path::Path;
use std::process::Command;

use docspace_rotate::cli::HELP;

use crate::mock::*;
use crate::run::*;

const NO_KEY: &str = "is not a valid API key: expected 1 to 8,000 printable ASCII characters without spaces or quotes";
const NO_ID: &str = "is not a valid client id: expected 1 to 128 of A-Z a-z 0-9 - . _ ~";
const PUT_KEY: &str = "put it only in DOCSPACE_API_KEY";

/// Returns a command with all settings in variables, with white space around them.
fn settings(portal: &MockPortal) -> Command {
    let mut command = program();
    command
        .env("DOCSPACE_API_KEY", format!(" {KEY}\n"))
        .env("DOCSPACE_CLIENT_ID", format!("\t{CLIENT}\r\n"));
    command.env("DOCSPACE_BASE_URL", format!("{}/\n", portal.url()));
    command
}

/// Checks that a run ends with a usage error that begins with these words, and does not show a value called `hush`.
#[track_caller]
fn assert_usage_error(command: &mut Command, words: &str) {
    let refused = run(command);
    refused.assert_run(2, "", &[&format!("docspace-rotate: {words}…")]);
    assert!(
        refused.error().ends_with("; nothing was sent; see --help"),
        "{refused}"
    );
    let stderr = refused.stderr.to_lowercase();
    assert!(
        !stderr.contains("hush") && !stderr.contains(KEY),
        "{refused}"
    );
}

#[test]
fn help_and_version_need_no_setting() {
    let version = concat!("docspace-rotate ", env!("CARGO_PKG_VERSION"), "\n");
    for (flag, text) in [
        ("-h", HELP),
        ("--help", HELP),
        ("-V", version),
        ("--version", version),
    ] {
        run(program().arg(flag)).assert_run(0, text, &[]);
    }
    let without_reader = pipe().unwrap().1;
    assert!(
        program()
            .arg("--help")
            .stdout(without_reader)
            .status()
            .unwrap()
            .success()
    );
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(
        program()
            .arg("-h")
            .stdout(full)
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn mistakes_send_nothing() {
    let portal = MockPortal::new(vec![]);
    for (args, words) in [
        (&["--bogus"][..], "--bogus: unknown option"),
        (&["-z"], "-z: unknown option"),
        (&["--api-key=hush"], "--api-key: unknown option"),
        (&["--quiet=hush"], "--quiet: takes no value"),
        (
            &["one", "hush"],
            "unexpected argument after CLIENT_ID: write -- before COMMAND",
        ),
        (
            &["--only", "hush"],
            "--only: STEP must be regenerate or revoke",
        ),
        (
            &["--timeout", "hush"],
            "--timeout: expected seconds, more than 0 and at most 240",
        ),
        (&["--timeout"], "--timeout: a value is required"),
        (&["--output", ""], "--output: a value is required"),
        (&["--cacert", ""], "--cacert: a value is required"),
        (
            &["--check", "--only", "revoke"],
            "--check cannot be combined with --only or --verify",
        ),
        (
            &["--check", "--verify"],
            "--check cannot be combined with --only or --verify",
        ),
        (
            &["--only", "revoke", "--verify"],
            "--only revoke: there is no new secret to deliver or --verify",
        ),
        (
            &["--only", "revoke", "-o", "-"],
            "--only revoke: there is no new secret to deliver or --verify",
        ),
        (
            &["--only", "revoke", "--", "cat"],
            "--only revoke: there is no new secret to deliver or --verify",
        ),
        (
            &["-o", "file", "--", "cat"],
            "--output cannot be combined with COMMAND",
        ),
        (&["--"], "COMMAND is missing after --"),
        (&["--", ""], "COMMAND is missing after --"),
        (
            &["--url", "http://127.0.0.1.invalid"],
            "127.0.0.1.invalid: http:// would send the key unencrypted: ",
        ),
        (
            &["--url", "https://user:hush@portal.invalid"],
            "--url: the address contains quotes, '@', '?' or '#': ",
        ),
        (
            &["--url", "https://portal.invalid/?hush"],
            "--url: the address contains quotes, '@', '?' or '#': ",
        ),
        (
            &["--cacert", "a\n.pem"],
            "--cacert contains a control character (Windows line endings?)",
        ),
        (
            &["--output", "secret\r"],
            "--output contains a control character (Windows line endings?)",
        ),
        (
            &["--timeout", "30\r"],
            "--timeout: expected seconds, more than 0 and at most 240",
        ),
        (
            &["--cacert", "missing.pem"],
            "cannot read the CA file missing.pem (from --cacert): No such file or directory",
        ),
        (
            &["--cacert", "/dev/null"],
            "the CA file /dev/null (from --cacert) contains no certificate in PEM format",
        ),
        (
            &["--cacert", "/dev/zero"],
            "the CA file /dev/zero (from --cacert) contains no certificate in PEM format",
        ),
    ] {
        assert_usage_error(settings(&portal).args(args), words);
    }
    for (variable, value, words) in [
        (
            "DOCSPACE_BASE_URL",
            "",
            "no portal address: give --url, or set DOCSPACE_BASE_URL",
        ),
        (
            "DOCSPACE_BASE_URL",
            "hush",
            "DOCSPACE_BASE_URL: write the address as https://",
        ),
        (
            "DOCSPACE_API_KEY",
            "",
            "no API key: set DOCSPACE_API_KEY, or DOCSPACE_API_KEY_FILE to ",
        ),
        (
            "DOCSPACE_API_KEY",
            "sk hush",
            &format!("DOCSPACE_API_KEY {NO_KEY}"),
        ),
        (
            "DOCSPACE_API_KEY_FILE",
            "hush",
            "DOCSPACE_API_KEY and DOCSPACE_API_KEY_FILE are both set",
        ),
        (
            "DOCSPACE_CLIENT_ID",
            "",
            "no client id: give CLIENT_ID, or set DOCSPACE_CLIENT_ID, or DOC",
        ),
        (
            "DOCSPACE_CLIENT_ID",
            "hush hush",
            &format!("DOCSPACE_CLIENT_ID {NO_ID}"),
        ),
        (
            "DOCSPACE_CLIENT_ID_FILE",
            "hush",
            "DOCSPACE_CLIENT_ID and DOCSPACE_CLIENT_ID_FILE are both set",
        ),
    ] {
        assert_usage_error(settings(&portal).env(variable, value), words);
    }
    assert_eq!(portal.connections(), 0);
}

#[test]
fn key_and_id_may_be_in_files_and_a_fifo_is_waited_for() {
    let (folder, portal) = (Folder::new(), MockPortal::new(good_run()));
    let (fifo, id) = (folder.fifo(), folder.file("id", format!("\t{CLIENT} \r\n")));
    let mut command = program();
    command
        .env("DOCSPACE_API_KEY_FILE", &fifo)
        .env("DOCSPACE_API_KEY", "");
    command
        .env("DOCSPACE_CLIENT_ID_FILE", id)
        .env("DOCSPACE_CLIENT_ID", "");
    let child = start(command.env("DOCSPACE_BASE_URL", portal.url()));
    fs::write(&fifo, format!("{KEY}\n")).unwrap();
    finish(&command, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    let requests = portal.requests();
    assert_eq!(
        requests[0].header("authorization"),
        Some(&*format!("Bearer {KEY}"))
    );
    assert!(requests[1].target.ends_with(CLIENT));
}

#[test]
fn unusable_files_are_mistakes_that_show_neither_name_nor_contents() {
    let (folder, portal) = (Folder::new(), MockPortal::new(vec![]));
    let is_mistake = |variable: &str, path: &Path, words: &str| {
        let file = format!("{variable}_FILE");
        let mut command = settings(&portal);
        assert_usage_error(
            command.env_remove(variable).env(&file, path),
            &words.replace("FILE", &file),
        );
    };
    for text in ["sk-hush\nsk-hush-too\n", "'hush'", "\n", &"h".repeat(8001)] {
        is_mistake(
            "DOCSPACE_API_KEY",
            &folder.file("hush", text),
            &format!("FILE {NO_KEY}"),
        );
    }
    for text in [
        "hush hush",
        "hush\nhush\n",
        "\n",
        "..",
        "hush/",
        &"h".repeat(129),
    ] {
        is_mistake(
            "DOCSPACE_CLIENT_ID",
            &folder.file("hush", text),
            &format!("FILE {NO_ID}"),
        );
    }
    is_mistake(
        "DOCSPACE_API_KEY",
        Path::new("/dev/zero"),
        &format!("FILE {NO_KEY} (byte 1 is 0x00)"),
    );
    for variable in ["DOCSPACE_API_KEY", "DOCSPACE_CLIENT_ID"] {
        is_mistake(
            variable,
            Path::new("/"),
            "cannot read / (from FILE): Is a directory",
        );
        is_mistake(
            variable,
            Path::new("sk-hush"),
            "cannot read the file (from FILE): No such file or directory",
        );
    }
}

#[test]
fn the_timeout_covers_a_fifo_without_a_writer() {
    let (folder, portal) = (Folder::new(), MockPortal::new(vec![]));
    let fifo = folder.fifo();
    for_each(
        vec!["DOCSPACE_API_KEY", "DOCSPACE_CLIENT_ID", "SSL_CERT"],
        |name| {
            let mut command = settings(&portal);
            command.env_remove(name).env(format!("{name}_FILE"), &fifo);
            let file = if name == "SSL_CERT" {
                format!("the CA file {}", fifo.display())
            } else {
                "the file".to_owned()
            };
            let words = format!(
                "docspace-rotate: timed out while reading {file} (from {name}_FILE); \
                 the client's secret is …"
            );
            run(command.args(["--timeout", "2"])).assert_run(4, "", &[&words]);
        },
    );
    assert_eq!(portal.connections(), 0);
}

#[test]
fn a_key_in_the_wrong_place_is_a_mistake_that_hides_it() {
    let portal = MockPortal::new(vec![]);
    // Without `sk-` it is found by its value, and in any case.
    for (key, other) in [
        (KEY, KEY.to_uppercase()),
        ("HUSH-HUSH-hush-1", "hush-hush-HUSH-1".to_owned()),
    ] {
        for (args, proxy, named) in [
            (
                &["--url", &*format!("https://portal.invalid/x{other}x")][..],
                "",
                "--url",
            ),
            (
                &["--allow-http"],
                &*format!("http://{other}:1"),
                "http_proxy",
            ),
            (
                &["--output", &format!("{}{other}", "long/".repeat(40))],
                "",
                "--output",
            ),
            (
                &["--", &format!("{}{other}", "long/".repeat(40))],
                "",
                "COMMAND",
            ),
            (
                &["--cacert", &format!("{}{other}", "long/".repeat(40))],
                "",
                "--cacert",
            ),
            (&[&format!("x-{other}")], "", "CLIENT_ID"),
        ] {
            let mut command = settings(&portal);
            command
                .env("DOCSPACE_API_KEY", key)
                .env("http_proxy", proxy);
            assert_usage_error(
                command.args(args),
                &format!("{named} contains the API key: {PUT_KEY}"),
            );
        }
    }
    for id in [KEY, "sK-hush"] {
        let error = format!("CLIENT_ID contains an API key: {PUT_KEY}");
        assert_usage_error(settings(&portal).arg(id), &error);
        assert_usage_error(
            settings(&portal).env("DOCSPACE_CLIENT_ID", id),
            &format!("DOCSPACE_{error}"),
        );
    }
    assert_usage_error(
        rotate(&portal).arg(format!("--{KEY}")),
        "[hidden]: unknown option",
    );
    assert_eq!(portal.connections(), 0);
}

#[test]
fn a_key_shorter_than_16_characters_is_not_looked_for() {
    for key in ["127.0.0.1", &CLIENT[..15]] {
        let portal = MockPortal::new(good_run());
        run(rotate(&portal).env("DOCSPACE_API_KEY", key)).assert_run(
            0,
            &secret_line(),
            &GOOD_RUN_LOG,
        );
    }
    let (portal, words) = (MockPortal::new(vec![]), "CLIENT_ID contains the API key: ");
    assert_usage_error(
        rotate(&portal).env("DOCSPACE_API_KEY", &CLIENT[..16]),
        words,
    );
}
