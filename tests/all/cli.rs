//! The command line through the real program: each mistake costs one line and not one packet.

use crate::portal::{Act, CLIENT, KEY, Stand, Step, good_run, look, on, reply};
use crate::run::{self, Folder, program, rotate, run};

#[test]
fn help_and_version_need_no_setting() {
    for flag in ["-h", "--help"] {
        let help = run(program().arg(flag));
        help.is(0, docspace_rotate::cli::HELP, &[]);
    }
    for flag in ["-V", "--version"] {
        let version = concat!("docspace-rotate ", env!("CARGO_PKG_VERSION"), "\n");
        run(program().arg(flag)).is(0, version, &[]);
    }
}

#[test]
fn help_may_be_cut_short_and_says_where_it_cannot_be_printed() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    drop(reader);
    while std::io::Write::write(&mut writer, b"x").is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(program().arg("--help").stdout(writer).status().unwrap().success());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(
        program().arg("--help").stdout(full).stderr(std::process::Stdio::null()).status().unwrap().code(),
        Some(2)
    );
}

/// Arguments and variables on top of a setting that works, and the error line they get.
type Mistake = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

#[test]
fn mistakes_send_nothing() {
    let stand = Stand::script(vec![]);
    let mistakes: &[Mistake] = &[
        (&["--bogus"], &[], "--bogus: unknown option"),
        (&["-z"], &[], "-z: unknown option"),
        (&["--api-key=hush"], &[], "--api-key: unknown option"),
        (&["--quiet=hush"], &[], "--quiet: takes no value"),
        (&["one-more"], &[], "CLIENT_ID: more than one argument is given"),
        (&["--only", "rotate"], &[], "--only: STEP must be regenerate or revoke"),
        (&["--timeout", "soon"], &[], "--timeout: give a number of seconds above 0 and up to 86400"),
        (&["--timeout"], &[], "--timeout: a value is required"),
        (
            &["--url", "http://127.0.0.1.invalid"],
            &[],
            "--url: http:// would send the key unencrypted: use https://, or give --allow-http",
        ),
        (
            &["--url", "https://user:hush@portal.invalid"],
            &[],
            "--url: the address has a user name or password before '@': the key goes in DOCSPACE_API_KEY",
        ),
        (
            &[],
            &[("DOCSPACE_BASE_URL", "https://portal.invalid/?hush")],
            "DOCSPACE_BASE_URL: the address has a query ('?') or fragment ('#'): give the portal's own address",
        ),
        (
            &[],
            &[("DOCSPACE_API_KEY", "")],
            "the key is missing: put it in DOCSPACE_API_KEY, or name a file that holds it in DOCSPACE_API_KEY_FILE",
        ),
        (
            &[],
            &[("DOCSPACE_API_KEY", "sk hush")],
            "DOCSPACE_API_KEY holds no usable key: a key is one word of printable ASCII characters, without spaces or quotes",
        ),
        (
            &[],
            &[("DOCSPACE_API_KEY_FILE", "hush")],
            "DOCSPACE_API_KEY and DOCSPACE_API_KEY_FILE are both set: unset one of them",
        ),
        (&[], &[("DOCSPACE_API_KEY", CLIENT)], "CLIENT_ID is the API key: put it only in DOCSPACE_API_KEY"),
        (
            &[],
            &[("DOCSPACE_API_KEY", ""), ("DOCSPACE_API_KEY_FILE", "missing/file")],
            "DOCSPACE_API_KEY_FILE: the file that it names can't be read: No such file or directory",
        ),
        (
            &[],
            &[("http_proxy", "quic://hush")],
            "http_proxy: not a usable proxy: the scheme must be one of http:// https:// socks4:// socks5://",
        ),
        (
            &[],
            &[("ALL_PROXY", "socks5://hush@127.0.0.1:1")],
            "ALL_PROXY: not a usable proxy: SOCKS5 takes a user and a password of 1 to 255 bytes each",
        ),
        (
            &["--url", "http://[::1]:1"],
            &[("ALL_PROXY", "socks4://127.0.0.1:1")],
            "ALL_PROXY: not a usable proxy: SOCKS4 does not support IPv6",
        ),
        (
            &[],
            &[("ALL_PROXY", "http://us er:hush@127.0.0.1:1")],
            "ALL_PROXY: not a usable proxy: bad user or password (write special characters as %XX)",
        ),
        (
            &["--output", "missing/file"],
            &[],
            "can't write to --output missing/file: No such file or directory",
        ),
        (&["--output", "/"], &[], "can't write to --output /: Is a directory"),
        (&["--output", ""], &[], "--output: the file's name is empty"),
        (&["--cacert", ""], &[], "--cacert: the file's name is empty"),
        (
            &["--output", "secret", "--only", "revoke"],
            &[],
            "--output: with --only revoke there is no new secret to write",
        ),
        (
            &["--url", "https://127.0.0.1:1", "--cacert", "missing.pem"],
            &[],
            "--cacert missing.pem can't be read: No such file or directory",
        ),
        (
            &["--url", "https://127.0.0.1:1"],
            &[("SSL_CERT_FILE", "/dev/null")],
            "SSL_CERT_FILE /dev/null holds no usable CA certificate (PEM)",
        ),
    ];
    for (args, env, error) in mistakes {
        let refused = run(rotate(&stand).args(*args).envs(env.iter().copied()));
        refused.is(2, "", &[&format!("docspace-rotate: {error}; nothing was sent; see --help")]);
        assert!(!refused.stderr.contains("hush"), "{refused}");
    }
    assert_eq!(stand.connections(), 0);
}

#[test]
fn a_missing_client_or_address_is_named() {
    let missing = run(program().env("DOCSPACE_BASE_URL", "https://portal.invalid"));
    missing.is(2, "", &["docspace-rotate: CLIENT_ID is missing: give it as the argument or in DOCSPACE_CLIENT_ID, or name a file that holds it in DOCSPACE_CLIENT_ID_FILE; nothing was sent; see --help"]);
    let missing = run(program().arg(CLIENT));
    missing.is(2, "", &["docspace-rotate: the portal's address is missing: give it with --url or in DOCSPACE_BASE_URL; nothing was sent; see --help"]);
}

#[test]
fn the_client_may_be_in_the_environment_and_the_address_an_argument() {
    let stand = Stand::script(good_run());
    let mut command = program();
    command.args(["-q", "--url", &format!("{}/", stand.url())]);
    command.envs([("DOCSPACE_CLIENT_ID", CLIENT), ("DOCSPACE_API_KEY", KEY), ("DOCSPACE_BASE_URL", "?")]);
    run(&mut command).is(0, &format!("{}\n", crate::portal::SECRET), &[]);
}

#[test]
fn the_key_may_be_in_a_file() {
    let folder = Folder::new();
    for ending in ["", "\n", "\r\n", " \t\n"] {
        let stand = Stand::script(good_run());
        let file = folder.file("key", format!("{KEY}{ending}"));
        let command = &mut rotate(&stand);
        run(command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", file).arg("-q")).is(
            0,
            &format!("{}\n", crate::portal::SECRET),
            &[],
        );
        let bearer = format!("Bearer {KEY}");
        assert!(stand.requests().iter().all(|r| r.header("authorization") == Some(&bearer)));
    }
}

#[test]
fn a_key_file_that_holds_no_key_is_named_and_not_shown() {
    let stand = Stand::script(vec![]);
    let folder = Folder::new();
    let two_keys = folder.file("two-keys", "sk-hush\nsk-hush-too\n");
    let empty = folder.file("empty", "\n");
    let two_keys = two_keys.to_str().unwrap();
    let empty = empty.to_str().unwrap();
    let unusable =
        "holds no usable key: a key is one word of printable ASCII characters, without spaces or quotes";
    let mut files = vec![(two_keys, unusable), (empty, "holds no key")];
    if cfg!(unix) {
        files.push(("/dev/zero", "holds more than 8,000 characters, which no portal takes for a key"));
        files.push(("/", "can't be read: Is a directory"));
    }
    for (file, why) in files {
        let command = &mut rotate(&stand);
        let refused = run(command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", file));
        let error = format!(
            "docspace-rotate: DOCSPACE_API_KEY_FILE: the file that it names {why}; nothing was sent; see --help"
        );
        refused.is(2, "", &[&error]);
        assert!(!refused.stderr.contains("hush"), "{refused}");
    }
    assert_eq!(stand.connections(), 0);
}

/// A job for each of many clients mounts a file with the id.
#[test]
fn the_clients_id_may_be_in_a_file() {
    let folder = Folder::new();
    for text in [CLIENT.to_owned(), format!("{CLIENT}\n"), format!(" \t{CLIENT} \r\n")] {
        let stand = Stand::script(good_run());
        let mut command = program();
        command.env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_API_KEY", KEY).arg("-q");
        command.env("DOCSPACE_CLIENT_ID_FILE", folder.file("id", text)).env("DOCSPACE_CLIENT_ID", "");
        run(&mut command).is(0, &crate::portal::line(), &[]);
        assert!(stand.requests()[1].target.ends_with(CLIENT));
    }
    let stand = Stand::script(vec![]);
    let unusable = "holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~";
    let file = |text: &str| folder.file("bad", text).to_str().unwrap().to_owned();
    for (text, why) in [
        (Some("two ids"), unusable),
        (Some("one\ntwo\n"), unusable),
        (Some("\n"), unusable),
        (Some(".."), unusable),
        (Some(KEY), "holds an API key: put it only in DOCSPACE_API_KEY"),
        (None, "can't be read: No such file or directory"),
    ] {
        let path = text.map_or(KEY.to_owned(), file);
        let mut command = program();
        command.env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_API_KEY", KEY);
        let refused = run(command.env("DOCSPACE_CLIENT_ID_FILE", path));
        let error = format!(
            "docspace-rotate: DOCSPACE_CLIENT_ID_FILE: the file that it names {why}; nothing was sent; see --help"
        );
        refused.is(2, "", &[&error]);
    }
    assert_eq!(stand.connections(), 0);
}

#[test]
fn a_key_in_the_wrong_place_is_not_shown() {
    let stand = Stand::script(vec![]);
    let command = &mut rotate(&stand);
    let refused = run(command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", KEY));
    refused.is(2, "", &["docspace-rotate: DOCSPACE_API_KEY_FILE: the file that it names can't be read: No such file or directory; nothing was sent; see --help"]);
    let address = format!("https://{KEY}");
    let proxy = format!("http://{KEY}:1");
    let output = format!("{KEY}/file");
    for (args, env, error) in [
        (&["--url", &address][..], None, "the address is the API key: put it only in DOCSPACE_API_KEY"),
        (&["--cacert", KEY], None, "--cacert [hidden] can't be read: No such file or directory"),
        (
            &[],
            Some(("SSL_CERT_FILE", KEY)),
            "SSL_CERT_FILE [hidden] can't be read: No such file or directory",
        ),
        (&["--output", &output], None, "can't write to --output [hidden]: No such file or directory"),
        (
            &[],
            Some(("http_proxy", &proxy)),
            "http_proxy: an http:// address would send the key unencrypted to this proxy: use https://, or give --allow-http",
        ),
    ] {
        let refused = run(rotate(&stand).args(args).envs(env));
        refused.is(2, "", &[&format!("docspace-rotate: {error}; nothing was sent; see --help")]);
    }
    assert_eq!(stand.connections(), 0);
}

#[test]
fn a_key_that_stands_for_the_client_or_a_host_is_not_sent_there() {
    let stand = Stand::script(vec![]);
    for id in [KEY, "sk-another", "SK-ANOTHER"] {
        for (args, variable, named) in [(&[id][..], "", "CLIENT_ID"), (&[], id, "DOCSPACE_CLIENT_ID")] {
            let mut command = program();
            command.env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_API_KEY", KEY);
            let refused = run(command.env("DOCSPACE_CLIENT_ID", variable).args(args));
            let error = "holds an API key: put it only in DOCSPACE_API_KEY; nothing was sent; see --help";
            refused.is(2, "", &[&format!("docspace-rotate: {named} {error}")]);
            assert!(!refused.stderr.to_lowercase().contains("another"), "{refused}");
        }
    }
    let upper = KEY.to_uppercase();
    let (url, proxy) = (format!("http://{upper}"), format!("http://{upper}:1"));
    for (args, proxy, named) in [
        (&["--allow-http", "--url", &url][..], "", "the address"),
        (&["--allow-http"], proxy.as_str(), "http_proxy"),
    ] {
        let refused = run(rotate(&stand).args(args).env("http_proxy", proxy));
        let error = "is the API key: put it only in DOCSPACE_API_KEY; nothing was sent; see --help";
        refused.is(2, "", &[&format!("docspace-rotate: {named} {error}")]);
    }
    assert_eq!(stand.connections(), 0);
}

/// What comes from outside is hidden whole where it holds the key; our own words never are.
#[test]
fn a_key_that_is_in_every_word_leaves_our_own_words_alone() {
    let stand = Stand::script(vec![]);
    let long = format!("--{}", KEY.to_uppercase());
    for (key, args, error) in [
        ("e", &["--output", "missing/file"][..], "can't write to --output [hidden]: [hidden]"),
        (
            "E",
            &["--cacert", "missing/file", "--url", "https://127.0.0.1"],
            "--cacert [hidden] can't be read: [hidden]",
        ),
        (
            "ing/fi",
            &["--output", "missing/file"],
            "can't write to --output [hidden]: No such file or directory",
        ),
        (KEY, &[&long], "[hidden]: unknown option"),
        (KEY, &["--sk-4f1d9"], "[hidden]: unknown option"),
        (KEY, &["--sk-4f1d"], "--sk-4f1d: unknown option"),
    ] {
        let refused = run(rotate(&stand).args(args).env("DOCSPACE_API_KEY", key));
        refused.is(2, "", &[&format!("docspace-rotate: {error}; nothing was sent; see --help")]);
    }
    let stand = Stand::script(vec![look(), on("PATCH regenerate", reply("patch-404-unknown"))]);
    let refused = run(rotate(&stand).env("DOCSPACE_API_KEY", "0.0"));
    let error =
        "docspace-rotate: [hidden] answered [PATCH regenerate] with status 404 (Not Found: Client with id …";
    refused.is(3, "", &["[HEAD client] Status: 200", "[PATCH regenerate] Status: 404", error]);
}

/// The same for what a signal or the timer shows, and for the log of a good run.
#[test]
fn a_key_that_is_a_part_of_the_address_hides_it() {
    let key = "27.0.0";
    let stand = Stand::script(vec![Step::Request("HEAD client", vec![Act::Hang])]);
    let missed = run(rotate(&stand).env("DOCSPACE_API_KEY", key).args(["--timeout", "0.5"]));
    missed.is(4, "", &["docspace-rotate: timed out during [HEAD client] at [hidden]; the client's secret …"]);
    let stand = Stand::script(vec![look()]);
    let done = run(rotate(&stand).env("DOCSPACE_API_KEY", key).arg("--check"));
    let ready = format!("Ready: [hidden] has client {CLIENT}, by a bearer token without sign-in.");
    done.is(0, "", &["[HEAD client] Status: 200", &ready]);
}

#[test]
fn a_ca_file_that_nobody_writes_is_waited_for() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(vec![]);
    let missed =
        run(rotate(&stand).args(["--timeout", "0.2", "--url", "https://127.0.0.1", "--cacert"]).arg(&fifo));
    let error = format!(
        "docspace-rotate: timed out while reading --cacert {}; the client's secret …",
        fifo.display()
    );
    missed.is(4, "", &[&error]);
}

#[test]
fn a_key_may_come_through_a_pipe_and_is_waited_for() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &fifo);
    let child = run::start(command.arg("-q"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    std::fs::write(&fifo, format!("{KEY}\n")).unwrap();
    run::finish(&command, child).is(0, &format!("{}\n", crate::portal::SECRET), &[]);

    let stand = Stand::script(vec![]);
    let mut command = rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &fifo);
    let refused = run(command.args(["--timeout", "0.2"]));
    refused.is(4, "", &["docspace-rotate: timed out while reading the file that DOCSPACE_API_KEY_FILE names; the client's secret is unchanged; run again later"]);
}
