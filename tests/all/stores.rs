//! docs/stores.md: each line is shell, names only programs that its row names, and delivers the secret as it is.

use std::fs;
use std::process::Command;

use crate::mock::*;
use crate::namespaces::{in_namespaces, system};
use crate::project::*;
use crate::run::*;

/// What any machine has (POSIX), and what a shell does itself.
const COMMON: [&str; 19] = [
    "[", "{", "}", ":", "cat", "cd", "date", "echo", "exec", "exit", "grep", "kill", "mv",
    "printf", "rm", "sed", "sh", "umask", "PID",
];

/// A secret with all that shells and clients interpret.
const ODD_SECRET: &str = r#"-a@"b'$c%d\e`f"#;

/// A row of a table.
struct Row {
    store: String,
    needs: Vec<String>,
    line: String,
    rehearsal: String,
    mind: String,
    tested: String,
}

fn rows() -> Vec<Row> {
    let mut rows = vec![];
    for text in text("docs/stores.md").lines() {
        // A pipe within a cell is written as `\|`.
        let text = text.replace("\\|", "\0");
        let cells: Vec<String> = text
            .split('|')
            .map(|cell| cell.trim().replace('\0', "|"))
            .collect();
        let [_, store, needs, line, rehearsal, mind, tested, _] = &cells[..] else {
            continue;
        };
        if store == "store" || store.starts_with("---") {
            continue;
        }
        rows.push(Row {
            store: store.clone(),
            needs: needs
                .split(", ")
                .map(|program| program.trim_matches('`').to_owned())
                .collect(),
            line: code(line),
            rehearsal: code(rehearsal),
            mind: mind.clone(),
            tested: tested.clone(),
        });
    }
    rows
}

/// Returns the code in a cell, which is nothing else.
fn code(cell: &str) -> String {
    let code = cell
        .strip_prefix('`')
        .and_then(|cell| cell.strip_suffix('`'));
    code.unwrap_or_else(|| panic!("not only code: {cell}"))
        .to_owned()
}

/// Returns the words of a line as a shell reads them.
fn words(line: &str) -> Vec<String> {
    let script = format!("set -- {line}\nfor word; do printf '%s\\0' \"$word\"; done");
    let output = command("sh")
        .args(["-c", &script])
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect()
}

/// Returns the script in `sh -c '...'`, or the line itself.
fn script(line: &str) -> String {
    let words = words(line);
    match words[0].as_str() {
        "sh" => words[2].clone(),
        _ => line.to_owned(),
    }
}

/// Returns the programs that a script starts: the first word of each command in it.
fn programs(script: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut quote = None;
    for c in script.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None => outside.push(c),
        }
    }
    let mut programs = vec![];
    // The programs in `$(...)`, which is a word of the command around it.
    while let Some((before, rest)) = outside.split_once("$(") {
        let (inner, after) = rest.split_once(')').unwrap();
        programs.extend(self::programs(inner));
        outside = format!("{before}word{after}");
    }
    for part in outside.split(['|', ';', '&', '(', ')', '\n']) {
        let mut words = part.split_whitespace();
        // `exec`, `{` and assignments stand before a command.
        let is_program = |word: &&str| !["exec", "{", "}"].contains(word) && !word.contains('=');
        let program = words.find(is_program);
        programs.extend(program.map(str::to_owned));
    }
    programs
}

#[test]
fn each_line_is_shell_and_names_only_the_programs_of_its_row() {
    let rows = rows();
    assert!((25..=30).contains(&rows.len()), "{} rows", rows.len());
    for row in &rows {
        let store = &row.store;
        assert!(["S", "C", "D"].contains(&&*row.tested), "{store}");
        assert!(row.mind.ends_with('.'), "{store}: {}", row.mind);
        for line in [&row.line, &row.rehearsal] {
            for script in [line.clone(), script(line)] {
                let mut check = command("sh");
                let checked = check.args(["-n", "-c", &script]).output().unwrap();
                assert!(checked.status.success(), "{store}: {script}");
            }
            for program in programs(&script(line)) {
                let is_named = row.needs.contains(&program);
                let is_common = COMMON.contains(&&*program) || program.starts_with('>');
                assert!(is_named || is_common, "{store} does not name {program}");
            }
        }
        let has_argument = row.line.contains("$(cat)");
        let says_so = row.mind.contains("The secret is an argument.");
        assert_eq!(has_argument, says_so, "{store}");
    }
}

/// Each client is a stub that keeps its stdin and its arguments. What the line itself does is real.
#[test]
fn each_line_delivers_the_secret_as_it_is() {
    let has_jq = Command::new("jq").arg("--version").output().is_ok();
    for_each(rows(), |row| {
        if row.needs.contains(&"jq".to_owned()) && !has_jq {
            return skipped(&format!("docs/stores.md, {}", row.store), "no jq here");
        }
        for secret in [SECRET, ODD_SECRET] {
            let stored = delivered(&row, secret);
            let is_exact = stored.iter().any(|text| text == secret);
            assert!(is_exact, "{}: {stored:?}", row.store);
        }
    });
}

/// A client that fails after it has read the secret, beside a store that accepts anything.
#[test]
fn a_kubernetes_secret_that_cannot_be_made_is_6() {
    let rows = rows();
    let row = rows.iter().find(|row| row.store == "Kubernetes").unwrap();
    let folder = Folder::new();
    stub(&folder, "kubectl", "cat > $here/$1; [ $1 = patch ]");
    let portal = MockPortal::new(ready([regenerate()]));
    let mut command = rotate(&portal);
    let path = format!("{}:/usr/bin:/bin", folder.as_ref().display());
    command.env("PATH", path).args(["-q", "--"]);
    let run = run(command.args(words(&row.line)));
    run.fails_with(6, "the command sh: it exited with status 1; ");
    assert_eq!(folder.names(), ["create", "kubectl"]);
}

/// Runs a row's line, and returns what its store could have read as the secret.
fn delivered(row: &Row, secret: &str) -> Vec<String> {
    let folder = Folder::new();
    for program in &row.needs {
        match program.as_str() {
            "" | "jq" => {}
            "kubectl" => stub(&folder, program, KUBECTL),
            "ssh" => stub(
                &folder,
                program,
                "shift; cd $here; exec sh -c \"${1#*; cd /etc/app &&}\"",
            ),
            // Reads the commands in backquotes, as psql does.
            "psql" => stub(&folder, program, "cat > $here/stored"),
            _ => stub(&folder, program, STUB),
        }
    }
    // For `kill -HUP PID`.
    let line = row
        .line
        .replace("PID", "$$")
        .replace("kill -HUP $$", "trap : HUP; kill -HUP $$");
    let reply = json(serde_json::json!({ "client_secret": secret }).to_string());
    let portal = MockPortal::new(ready([expect("PATCH regenerate", reply), revoke()]));
    let mut command = rotate(&portal);
    let path = format!("{}:/usr/bin:/bin", folder.as_ref().display());
    command.env("PATH", path).env("HOME", folder.as_ref());
    command.current_dir(folder.as_ref());
    let done = run(command.arg("-q").arg("--").args(words_with_pid(&line)));
    assert_eq!(done.status, Some(0), "{}\n{done}", row.store);
    assert!(
        !done.stdout.contains(secret),
        "{} prints the secret",
        row.store
    );

    let mut found = vec![];
    for name in folder.names() {
        let text = fs::read_to_string(folder.path(&name)).unwrap_or_default();
        if name != "arguments" {
            found.extend(readings(&text));
        } else if row.mind.contains("The secret is an argument.") {
            // One a line.
            found.extend(text.lines().flat_map(readings));
        }
    }
    found
}

/// A client that needs no server, and how what it stored is read with its own tools.
struct Client {
    store: &'static str,
    program: &'static str,
    prepare: &'static str,
    read: &'static str,
}

const CLIENTS: [Client; 4] = [
    Client {
        store: "age",
        program: "age",
        prepare: "age-keygen -o key 2> /dev/null; age-keygen -y key > recipient",
        read: "age -d -i key FILE",
    },
    Client {
        store: "Ansible Vault",
        program: "ansible-vault",
        prepare: "echo word > PASSWORD_FILE",
        read: "sed 1d vars.yml | tr -d ' ' | ansible-vault decrypt --vault-password-file PASSWORD_FILE",
    },
    Client {
        store: "systemd credential",
        program: "systemd-creds",
        prepare: "mkdir -p /etc/credstore.encrypted; \
                  echo 0123456789abcdef0123456789abcdef > /etc/machine-id; systemd-creds setup",
        read: "systemd-creds decrypt --name=docspace /etc/credstore.encrypted/docspace -",
    },
    Client {
        store: "Kubernetes",
        program: "kubectl",
        // Without a server, only what would be sent can be seen.
        prepare: "printf '%s\\n' '#!/bin/sh' 'case $1 in patch) cat > sent ;; \
                  *) PATH=/usr/bin:/bin; exec kubectl \"$@\" ;; esac' > kubectl; chmod +x kubectl",
        read: "sed -n 's/^  client-secret: //p' sent | base64 -d",
    },
];

/// Those that are on this machine. The namespaces keep what they store off it.
#[test]
fn real_clients_store_the_secret_as_it_is() {
    let test = "stores::real_clients_store_the_secret_as_it_is";
    if !in_namespaces(test) {
        return;
    }
    system("mount -t tmpfs none /etc");
    // systemd-creds refuses a key in memory, where it would not outlive a reboot.
    let disk = concat!(env!("CARGO_TARGET_TMPDIR"), "/systemd");
    fs::create_dir_all(disk).unwrap();
    system(&format!("mount --bind {disk} /var/lib/systemd"));
    for client in CLIENTS {
        let found = command("sh")
            .args(["-c", &format!("command -v {}", client.program)])
            .env("PATH", "/usr/bin:/bin")
            .output();
        if !found.unwrap().status.success() {
            skipped(client.store, "its client is not here");
            continue;
        }
        for secret in [SECRET, ODD_SECRET] {
            let stored = store_with(&client, secret);
            assert_eq!(stored, secret, "{}", client.store);
        }
    }
}

fn store_with(client: &Client, secret: &str) -> String {
    let folder = Folder::new();
    let path = path_with(folder.as_ref());
    let shell = |script: &str| {
        let mut shell = command("sh");
        shell.args(["-c", script]).current_dir(folder.as_ref());
        shell.env("PATH", &path).env("HOME", folder.as_ref());
        let output = shell.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    shell(client.prepare);
    let recipient = fs::read_to_string(folder.path("recipient")).unwrap_or_default();
    let rows = rows();
    let row = rows.iter().find(|row| row.store == client.store).unwrap();
    let line = row.line.replace("RECIPIENT", recipient.trim());
    let reply = json(serde_json::json!({ "client_secret": secret }).to_string());
    let portal = MockPortal::new(ready([expect("PATCH regenerate", reply), revoke()]));
    let mut command = rotate(&portal);
    command.env("PATH", &path).env("HOME", folder.as_ref());
    command.current_dir(folder.as_ref()).args(["-q", "--"]);
    let done = run(command.args(words(&line)));
    assert_eq!(done.status, Some(0), "{}\n{done}", client.store);
    shell(client.read)
}

/// Keeps stdin, and the arguments.
const STUB: &str = "printf '%s\\n' \"$@\" > $here/arguments; cat > $here/stored";

/// Prints what it would create, in place of YAML as JSON, and keeps what it would patch.
const KUBECTL: &str = "case $1 in
    create) printf '{\"data\":{\"client-secret\":\"'; base64 -w 0; printf '\"}}\\n' ;;
    *) cat > $here/stored ;;
    esac";

/// Returns the words of a line whose `$$` is for the inner shell.
fn words_with_pid(line: &str) -> Vec<String> {
    words(&line.replace("$(date +%s)", "1"))
}

/// Returns all that a file with this text could have as its secret.
fn readings(text: &str) -> Vec<String> {
    let mut found = vec![text.to_owned()];
    for line in text.lines() {
        if let Some((_name, value)) = line.split_once('=') {
            found.push(value.to_owned());
        }
    }
    if let Ok(json) = serde_json::from_str(text) {
        add_texts(&json, &mut found);
    }
    found
}

/// Adds the texts in a JSON value, and what they are in base64.
fn add_texts(json: &serde_json::Value, found: &mut Vec<String>) {
    match json {
        serde_json::Value::String(text) => {
            let mut decode = command("base64");
            let file = Folder::new();
            let encoded = file.file("text", text);
            let decoded = decode
                .arg("-d")
                .arg(encoded)
                .env("PATH", "/usr/bin:/bin")
                .output();
            if let Ok(decoded) = decoded {
                found.push(String::from_utf8_lossy(&decoded.stdout).into_owned());
            }
            found.push(text.clone());
        }
        serde_json::Value::Object(fields) => {
            for value in fields.values() {
                add_texts(value, found);
            }
        }
        _ => {}
    }
}
