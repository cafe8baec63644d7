//! The script of action.yml with a stub of gh, and what releases have in common with it.

use std::fs;
use std::process::Command;

use yaml_rust2::Yaml;

use crate::project::*;
use crate::run::*;

const HOSTS: [(&str, &str); 2] = [
    ("X64", "x86_64-unknown-linux-gnu"),
    ("ARM64", "aarch64-unknown-linux-gnu"),
];

/// Returns the command for a step's script, as the runner starts it.
fn bash(step: &Yaml, folder: &Folder, path: &str) -> Command {
    let mut command = command("/bin/bash");
    command.args([
        "--noprofile",
        "--norc",
        "-eo",
        "pipefail",
        "-c",
        step["run"].as_str().unwrap(),
    ]);
    command
        .current_dir(folder.as_ref())
        .env("RUNNER_TEMP", folder.path("runner temp"));
    command.env(
        "PATH",
        format!("{}:/usr/bin:/bin", folder.path(path).display()),
    );
    command
}

/// Prepares a runner whose paths have spaces, with the files of a release; returns the command for the step.
fn runner() -> (Command, Folder) {
    let step = &yaml(&text("action.yml"))["runs"]["steps"][0];
    let folder = Folder::new();
    for name in ["the action", "runner temp", "assets", "bin"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    folder.file("the action/Cargo.toml", text("Cargo.toml"));
    folder.file("path file", "/before\n");
    for (_, host) in HOSTS {
        let name = format!("assets/docspace-rotate-{VERSION}-{host}");
        folder.file(
            &name,
            format!("#!/bin/sh\necho docspace-rotate for {host}\n"),
        );
        folder.file(&format!("{name}.tar.gz"), host);
    }
    let mut sums = Command::new("sh");
    sums.args(["-c", "sha256sum docspace-* > SHA256SUMS"])
        .current_dir(folder.path("assets"));
    assert!(sums.status().unwrap().success());
    let gh = "echo \"$@\" >> $here/arguments\n\
        [ \"$GH_TOKEN\" = token-of-the-store ] && [ $1 != \"$FAULT\" ] || { echo HTTP 404 >&2; exit 1; }\n\
        [ $1 = release ] || exit 0\n\
        [ \"$FAULT\" = missing ] || cp $here/assets/$7 .\n\
        cp $here/assets/$9 .\n\
        [ \"$FAULT\" != checksum ] || echo >> $7";
    stub(&folder, "bin/gh", gh);
    // Values reach the script only through its environment.
    assert!(
        step["shell"].as_str() == Some("bash") && !step["run"].as_str().unwrap().contains("${{")
    );
    let env = "{GH_TOKEN: \"${{ github.token }}\", ACTION_REPOSITORY: \"${{ github.action_repository }}\"}";
    assert_eq!(step["env"], yaml(env));
    let mut command = bash(step, &folder, "bin");
    command
        .env("RUNNER_OS", "Linux")
        .env("RUNNER_ARCH", "X64")
        .env("GH_TOKEN", TOKEN);
    command
        .env("GITHUB_ACTION_PATH", folder.path("the action"))
        .env("GITHUB_PATH", folder.path("path file"));
    command.env("ACTION_REPOSITORY", "you/docspace-rotate");
    (command, folder)
}

/// Runs the step, which must fail with a sentence that ends so, and leave nothing on PATH.
#[track_caller]
fn fails_with(command: &mut Command, folder: &Folder, sentence: &str) -> Run {
    let done = log_of(command);
    let error = done.stdout.lines().last().unwrap();
    assert!(
        error.starts_with("::error title=docspace-rotate::") && error.ends_with(sentence),
        "{done}"
    );
    assert_eq!(done.status, Some(1), "{done}");
    assert_eq!(read(folder, "path file").unwrap(), "/before\n", "{done}");
    done
}

#[test]
fn puts_the_verified_binary_on_path() {
    for (arch, host) in HOSTS {
        // `uses: ./` knows its repository only from the second variable.
        for (repository, other) in [
            ("you/docspace-rotate", "no/repository"),
            ("", "you/docspace-rotate"),
        ] {
            let (mut command, folder) = runner();
            command
                .env("RUNNER_ARCH", arch)
                .env("ACTION_REPOSITORY", repository);
            let done = log_of(command.env("DOCSPACE_ROTATE_REPOSITORY", other));
            assert_eq!(done.status, Some(0), "{done}");
            let paths = read(&folder, "path file").unwrap();
            let (before, added) = paths.trim_end().split_once('\n').unwrap();
            assert!(
                before == "/before"
                    && added.starts_with(folder.path("runner temp").to_str().unwrap())
            );
            let program = Command::new(format!("{added}/docspace-rotate"))
                .output()
                .unwrap();
            assert_eq!(
                program.stdout,
                format!("docspace-rotate for {host}\n").as_bytes()
            );
            let (name, repo) = (
                format!("docspace-rotate-{VERSION}-{host}"),
                "you/docspace-rotate",
            );
            let calls = format!(
                "release download v{VERSION} --repo {repo} --pattern {name} --pattern SHA256SUMS\n\
                 attestation verify {name} --repo {repo} --signer-workflow {repo}/.github/workflows/release.yml \
                 --source-ref refs/tags/v{VERSION}\n"
            );
            assert_eq!(read(&folder, "arguments").unwrap(), calls);
        }
    }
}

#[test]
fn a_failure_leaves_nothing_on_path() {
    let name = format!("docspace-rotate-{VERSION}-x86_64-unknown-linux-gnu");
    let release = format!("The release v{VERSION} of you/docspace-rotate could not be downloaded.");
    let file = format!("{name} is missing from the release, or does not match its checksum.");
    let attestation =
        format!("{name} has no valid attestation, or this gh is too old to check it.");
    let repository =
        "The action's repository is unknown: write 'uses: OWNER/docspace-rotate@VERSION'.";
    for (variable, value, calls, sentence) in [
        ("FAULT", "release", 1, &*release),
        ("FAULT", "missing", 1, &file),
        ("FAULT", "checksum", 1, &file),
        ("FAULT", "attestation", 2, &attestation),
        (
            "RUNNER_ARCH",
            "ARM",
            0,
            "There is no binary for Linux on ARM, only for Linux on X64 and ARM64.",
        ),
        (
            "RUNNER_OS",
            "macOS",
            0,
            "There is no binary for macOS on X64, only for Linux on X64 and ARM64.",
        ),
        ("ACTION_REPOSITORY", "", 0, repository),
        (
            "PATH",
            "/nonexistent",
            0,
            "This runner has no gh: install a recent GitHub CLI.",
        ),
    ] {
        let (mut command, folder) = runner();
        let done = fails_with(command.env(variable, value), &folder, sentence);
        assert_eq!(
            read(&folder, "arguments")
                .unwrap_or_default()
                .lines()
                .count(),
            calls,
            "{done}"
        );
        assert!(
            calls > 0 || done.stdout.lines().count() == 1 && done.stderr.is_empty(),
            "{done}"
        );
    }
}

/// The release has the files that the action asks for, and is tried with it on both platforms.
#[test]
fn the_release_has_what_the_action_asks_for() {
    let script = text(".ci/release");
    let naming = script
        .lines()
        .find(|line| line.starts_with("name="))
        .unwrap();
    for (_, host) in HOSTS {
        let script = format!("binary=$0; host=$1; {naming}; echo $name");
        let mut shell = Command::new("bash");
        let shell = shell.args(["-c", &script, env!("CARGO_BIN_EXE_docspace-rotate"), host]);
        let name = format!("docspace-rotate-{VERSION}-{host}\n");
        assert_eq!(shell.output().unwrap().stdout, name.as_bytes());
    }
    let workflow = yaml(&text(".github/workflows/release.yml"));
    let runners = yaml("[ubuntu-24.04, ubuntu-24.04-arm]");
    for job in ["build", "action"] {
        assert_eq!(
            workflow["jobs"][job]["strategy"]["matrix"]["runner"], runners,
            "{job}"
        );
    }
    let job = &workflow["jobs"]["action"];
    assert_eq!(job["needs"].as_str(), Some("publish"));
    assert_eq!(
        job["env"]["DOCSPACE_ROTATE_REPOSITORY"].as_str(),
        Some("${{ github.repository }}")
    );
    let image = &workflow["jobs"]["publish"]["steps"][2];
    assert!(
        image["uses"]
            .as_str()
            .unwrap()
            .starts_with("actions/attest-build-provenance@")
    );
    assert_eq!(image["with"]["push-to-registry"].as_bool(), Some(true));
}

/// With a gh that changes the binary, as in the release's own test of the action, the checksum or the attestation fails.
#[test]
fn the_release_tries_a_changed_binary() {
    let step = &yaml(&text(".github/workflows/release.yml"))["jobs"]["action"]["steps"][1];
    for (also, sentence) in [(false, "checksum."), (true, "too old to check it.")] {
        let (mut command, folder) = runner();
        assert_eq!(
            log_of(bash(step, &folder, "bin").env("GITHUB_PATH", "/dev/null")).status,
            Some(0)
        );
        if also {
            folder.file("runner temp/also", "");
            command.env("FAULT", "attestation");
        }
        command.env(
            "PATH",
            format!("{}:/usr/bin:/bin", folder.path("runner temp/bin").display()),
        );
        fails_with(&mut command, &folder, sentence);
        assert!(folder.path("runner temp/changed").exists());
    }
}

/// The notes of a release are what changed in that version, and the checksums of both platforms.
#[test]
fn release_notes() {
    let workflow = yaml(&text(".github/workflows/release.yml"));
    assert_eq!(workflow["defaults"]["run"]["shell"].as_str(), Some("bash"));
    let work = Folder::new();
    stub(&work, "gh", "echo \"$@\" > $here/arguments");
    let mut files = Vec::new();
    for ((_, host), runner) in HOSTS.into_iter().zip(["ubuntu-24.04", "ubuntu-24.04-arm"]) {
        let name = format!("dist-{runner}/docspace-rotate-{VERSION}-{host}");
        fs::create_dir(work.path(&format!("dist-{runner}"))).unwrap();
        work.file(
            &format!("dist-{runner}/SHA256SUMS"),
            format!("0123  {host}\n"),
        );
        work.file(&name, "");
        let archive = work.path(&format!("{name}.tar.gz"));
        let options = [
            "--transform=s,^,docspace-rotate-x/,",
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "CHANGELOG.md",
        ];
        assert!(
            Command::new("tar")
                .arg("-cf")
                .arg(archive)
                .args(options)
                .status()
                .unwrap()
                .success()
        );
        files.extend([format!(" {name} "), format!(" {name}.tar.gz ")]);
    }
    let step = &workflow["jobs"]["publish"]["steps"][4];
    let publish = || log_of(bash(step, &work, "").env("GITHUB_REF_NAME", format!("v{VERSION}")));
    let done = publish();
    assert_eq!(done.status, Some(0), "{done}");
    let arguments = read(&work, "arguments").unwrap().replace('\n', " ");
    let start = format!("release create v{VERSION} --verify-tag --notes-file notes.md SHA256SUMS ");
    assert!(arguments.starts_with(&start), "{arguments}");
    assert!(
        files.iter().all(|name| arguments.contains(name)),
        "{arguments}"
    );
    let notes = read(&work, "notes.md").unwrap();
    assert!(
        notes.starts_with(&format!("## {VERSION}\n")) && !notes.contains("\n## "),
        "{notes}"
    );
    assert!(
        HOSTS
            .iter()
            .all(|(_, host)| notes.contains(&format!("\n    0123  {host}\n"))),
        "{notes}"
    );

    // A truncated archive fails before anything is published.
    fs::remove_file(work.path("arguments")).unwrap();
    work.file(files[1].trim(), "truncated");
    let failed = publish();
    assert!(
        failed.status != Some(0) && read(&work, "arguments").is_none(),
        "{failed}"
    );
}
