//! The script of action.yml with a stub of gh, and what releases have in common with it.

use std::fs;
use std::process::Command;

use yaml_rust2::Yaml;

use crate::project::*;
use crate::run::*;

/// The hosts of the binaries, with the names that GitHub has for a runner's architecture and for the runner.
const HOSTS: [Host; 2] = [
    Host {
        triple: "x86_64-unknown-linux-gnu",
        arch: "X64",
        runner: "ubuntu-24.04",
    },
    Host {
        triple: "aarch64-unknown-linux-gnu",
        arch: "ARM64",
        runner: "ubuntu-24.04-arm",
    },
];

struct Host {
    triple: &'static str,
    arch: &'static str,
    runner: &'static str,
}

impl Host {
    /// Returns the name of the binary in a release.
    fn binary(&self) -> String {
        format!("docspace-rotate-{VERSION}-{}", self.triple)
    }
}

fn release_workflow() -> Yaml {
    yaml(&text(".github/workflows/release.yml"))
}

/// Returns the command for a step's script, as the runner starts it, with this folder first on its PATH.
fn bash(step: &Yaml, folder: &Folder, path: &str) -> Command {
    let script = step["run"].as_str().unwrap();
    let mut command = command("/bin/bash");
    command
        .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script])
        .current_dir(folder.as_ref())
        .env("RUNNER_TEMP", folder.path("runner temp"))
        .env("PATH", path_with(&folder.path(path)));
    command
}

/// Notes its arguments and does what the action needs, or has the fault that `FAULT` names.
const GH: &str = "echo \"$@\" >> $here/arguments
    [ \"$GH_TOKEN\" = token-of-the-store ] && [ $1 != \"$FAULT\" ] || { echo HTTP 404 >&2; exit 1; }
    [ $1 = release ] || exit 0
    [ \"$FAULT\" = missing ] || cp $here/assets/$7 .
    cp $here/assets/$9 .
    [ \"$FAULT\" != checksum ] || echo >> $7";

/// Prepares a runner whose paths have spaces, with the files of a release; returns the command for the step.
fn runner() -> (Command, Folder) {
    let folder = Folder::new();
    for name in ["the action", "runner temp", "assets", "bin"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    folder.file("the action/Cargo.toml", text("Cargo.toml"));
    folder.file("path file", "/before\n");
    stub(&folder, "bin/gh", GH);
    for host in HOSTS {
        let script = format!("#!/bin/sh\necho docspace-rotate for {}\n", host.arch);
        let name = format!("assets/{}", host.binary());
        folder.file(&name, script);
        folder.file(&format!("{name}.tar.gz"), host.arch);
    }
    let mut sums = Command::new("sh");
    sums.args(["-c", "sha256sum docspace-* > SHA256SUMS"]);
    succeeds(sums.current_dir(folder.path("assets")));

    let step = &yaml(&text("action.yml"))["runs"]["steps"][0];
    let mut command = bash(step, &folder, "bin");
    command
        .env("RUNNER_OS", "Linux")
        .env("RUNNER_ARCH", "X64")
        .env("GH_TOKEN", TOKEN)
        .env("GITHUB_ACTION_PATH", folder.path("the action"))
        .env("GITHUB_PATH", folder.path("path file"))
        .env("ACTION_REPOSITORY", "you/docspace-rotate");
    (command, folder)
}

/// Returns the arguments of the calls, a line each.
fn calls_of_gh(folder: &Folder) -> String {
    read(folder, "arguments").unwrap_or_default()
}

/// Runs the step, which must fail with a sentence that ends so, and leave nothing on PATH.
#[track_caller]
fn fails_with(command: &mut Command, folder: &Folder, sentence: &str) -> Run {
    let done = log_of(command);
    let error = done.stdout.lines().last().unwrap();
    let is_shown = error.starts_with("::error title=docspace-rotate::");
    assert!(is_shown && error.ends_with(sentence), "{done}");
    assert_eq!(done.status, Some(1), "{done}");
    assert_eq!(read(folder, "path file").unwrap(), "/before\n", "{done}");
    done
}

#[test]
fn values_reach_the_script_only_through_its_environment() {
    let step = &yaml(&text("action.yml"))["runs"]["steps"][0];
    assert!(!step["run"].as_str().unwrap().contains("${{"));
    assert_eq!(step["shell"], yaml("bash"));
    let env = "GH_TOKEN: ${{ github.token }}
ACTION_REPOSITORY: ${{ github.action_repository }}";
    assert_eq!(step["env"], yaml(env));
}

#[test]
fn puts_the_verified_binary_on_path() {
    for host in HOSTS {
        let _case = Named(host.arch);
        let (mut command, folder) = runner();
        command
            .env("RUNNER_ARCH", host.arch)
            .env("DOCSPACE_ROTATE_REPOSITORY", "no/repository");
        succeeds(&mut command);
        let paths = read(&folder, "path file").unwrap();
        let added = paths.strip_prefix("/before\n").unwrap().trim_end();
        assert!(added.starts_with(folder.path("runner temp").to_str().unwrap()));
        let program = Command::new(format!("{added}/docspace-rotate"))
            .output()
            .unwrap();
        let expected = format!("docspace-rotate for {}\n", host.arch);
        assert_eq!(program.stdout, expected.as_bytes());
        assert_eq!(calls_of_gh(&folder), verified_download(&host));
    }
}

/// Returns the calls of gh that download the binary and verify it.
fn verified_download(host: &Host) -> String {
    let name = host.binary();
    let repo = "you/docspace-rotate";
    format!(
        "release download v{VERSION} --repo {repo} --pattern {name} --pattern SHA256SUMS\n\
         attestation verify {name} --repo {repo} --signer-workflow {repo}/.github/workflows/release.yml \
         --source-ref refs/tags/v{VERSION}\n"
    )
}

#[test]
fn a_step_that_uses_the_checkout_needs_a_variable_with_its_repository() {
    let (mut command, folder) = runner();
    command
        .env("ACTION_REPOSITORY", "")
        .env("DOCSPACE_ROTATE_REPOSITORY", "you/docspace-rotate");
    succeeds(&mut command);
    assert_eq!(calls_of_gh(&folder), verified_download(&HOSTS[0]));
}

/// Runs the step with this variable, which must fail with this sentence. Returns the number of calls of gh.
#[track_caller]
fn calls_before(sentence: &str, variable: &str, value: &str) -> usize {
    let (mut command, folder) = runner();
    let done = fails_with(command.env(variable, value), &folder, sentence);
    let calls = calls_of_gh(&folder);
    if calls.is_empty() {
        assert_eq!(done.stdout.lines().count(), 1, "{done}");
        assert_eq!(done.stderr, "", "{done}");
    }
    calls.lines().count()
}

#[test]
fn a_runner_of_another_architecture_has_no_binary() {
    let error = "There is no binary for Linux on ARM, only for Linux on X64 and ARM64.";
    assert_eq!(calls_before(error, "RUNNER_ARCH", "ARM"), 0);
}

#[test]
fn a_runner_of_another_system_has_no_binary() {
    let error = "There is no binary for macOS on X64, only for Linux on X64 and ARM64.";
    assert_eq!(calls_before(error, "RUNNER_OS", "macOS"), 0);
}

#[test]
fn without_a_repository_nothing_is_downloaded() {
    let error = "The action's repository is unknown: write 'uses: OWNER/docspace-rotate@VERSION'.";
    assert_eq!(calls_before(error, "ACTION_REPOSITORY", ""), 0);
}

#[test]
fn a_runner_without_gh_is_told_what_to_install() {
    let error = "This runner has no gh: install a recent GitHub CLI.";
    assert_eq!(calls_before(error, "PATH", "/nonexistent"), 0);
}

#[test]
fn a_release_that_is_missing_leaves_nothing_on_path() {
    let error = format!("The release v{VERSION} of you/docspace-rotate could not be downloaded.");
    assert_eq!(calls_before(&error, "FAULT", "release"), 1);
}

#[test]
fn a_binary_that_is_missing_or_changed_is_not_on_path() {
    let name = HOSTS[0].binary();
    let error = format!("{name} is missing from the release, or does not match its checksum.");
    assert_eq!(calls_before(&error, "FAULT", "missing"), 1);
    assert_eq!(calls_before(&error, "FAULT", "checksum"), 1);
}

#[test]
fn a_binary_without_an_attestation_is_not_on_path() {
    let name = HOSTS[0].binary();
    let error = format!("{name} has no valid attestation, or this gh is too old to check it.");
    assert_eq!(calls_before(&error, "FAULT", "attestation"), 2);
}

/// The script of a release gives the binary the name that the action asks for.
#[test]
fn a_release_names_the_binary_as_the_action_does() {
    let script = text(".ci/release");
    let is_name = |line: &&str| line.starts_with("name=");
    let naming = script.lines().find(is_name).unwrap();
    let script = format!("binary=$0; host=$1; {naming}; echo $name");
    for host in HOSTS {
        let program = env!("CARGO_BIN_EXE_docspace-rotate");
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, program, host.triple]);
        let output = shell.output().unwrap();
        assert_eq!(output.stdout, format!("{}\n", host.binary()).as_bytes());
    }
}

/// A release is built only after CI has passed, and the action is tried with it, all on both platforms.
#[test]
fn the_jobs_of_a_release_follow_each_other() {
    let workflow = release_workflow();
    let jobs = &workflow["jobs"];
    // The workflow itself grants nothing, and a call cannot have more than its caller.
    let call = "{ permissions: { contents: read }, uses: ./.github/workflows/ci.yml }";
    assert_eq!(jobs["ci"], yaml(call));
    for (job, needed) in [("build", "ci"), ("publish", "build"), ("action", "publish")] {
        assert_eq!(jobs[job]["needs"], yaml(needed), "{job}");
    }
    let ci = yaml(&text(".github/workflows/ci.yml"));
    assert!(!ci["on"]["workflow_call"].is_badvalue());
    // In the group of its caller, the call would cancel it.
    let group = |workflow: &Yaml| workflow["concurrency"]["group"].clone();
    assert_ne!(group(&ci), group(&workflow));
    let runners = yaml("[ubuntu-24.04, ubuntu-24.04-arm]");
    for job in [&ci["jobs"]["ci"], &jobs["build"], &jobs["action"]] {
        assert_eq!(job["strategy"]["matrix"]["runner"], runners);
    }
}

#[test]
fn a_release_attests_the_image_and_tries_the_action() {
    let workflow = release_workflow();
    let image = &workflow["jobs"]["publish"]["steps"][2];
    let attest = "actions/attest-build-provenance@";
    assert!(image["uses"].as_str().unwrap().starts_with(attest));
    assert_eq!(image["with"]["push-to-registry"], Yaml::Boolean(true));
    let env = "{ DOCSPACE_ROTATE_REPOSITORY: \"${{ github.repository }}\" }";
    assert_eq!(workflow["jobs"]["action"]["env"], yaml(env));
}

/// With a gh that changes the binary, as in the release's own test of the action, the checksum or the attestation fails.
#[test]
fn the_release_tries_a_changed_binary() {
    let step = &release_workflow()["jobs"]["action"]["steps"][1];
    for (fault, sentence) in [("", "checksum."), ("attestation", "too old to check it.")] {
        let (mut command, folder) = runner();
        let mut change = bash(step, &folder, "bin");
        succeeds(change.env("GITHUB_PATH", "/dev/null"));
        if fault == "attestation" {
            folder.file("runner temp/also", "");
        }
        command
            .env("FAULT", fault)
            .env("PATH", path_with(&folder.path("runner temp/bin")));
        fails_with(&mut command, &folder, sentence);
        assert!(folder.path("runner temp/changed").exists());
    }
}

/// Creates the files that the build jobs leave for a platform, and returns their names.
fn build(work: &Folder, host: &Host) -> [String; 2] {
    let dist = format!("dist-{}", host.runner);
    let binary = format!("{dist}/{}", host.binary());
    let archive = format!("{binary}.tar.gz");
    fs::create_dir(work.path(&dist)).unwrap();
    let sums = format!("0123  {}\n", host.triple);
    work.file(&format!("{dist}/SHA256SUMS"), sums);
    work.file(&binary, "");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(work.path(&archive));
    tar.args(["-C", env!("CARGO_MANIFEST_DIR"), "CHANGELOG.md"]);
    succeeds(tar.arg("--transform=s,^,docspace-rotate-x/,"));
    [binary, archive]
}

/// The notes of a release are what changed in that version, and the checksums of both platforms.
#[test]
fn release_notes() {
    let workflow = release_workflow();
    assert_eq!(workflow["defaults"]["run"]["shell"], yaml("bash"));
    let work = Folder::new();
    stub(&work, "gh", "echo \"$@\" > $here/arguments");
    let files = HOSTS.map(|host| build(&work, &host)).concat();
    let step = &workflow["jobs"]["publish"]["steps"][4];
    let mut publish = bash(step, &work, "");
    publish.env("GITHUB_REF_NAME", format!("v{VERSION}"));
    succeeds(&mut publish);
    let arguments = calls_of_gh(&work).replace('\n', " ");
    let start = format!("release create v{VERSION} --verify-tag --notes-file notes.md SHA256SUMS ");
    assert!(arguments.starts_with(&start), "{arguments}");
    for name in &files {
        assert!(arguments.contains(&format!(" {name} ")), "{arguments}");
    }
    let notes = read(&work, "notes.md").unwrap();
    assert!(notes.starts_with(&format!("## {VERSION}\n")), "{notes}");
    assert!(!notes.contains("\n## "), "{notes}");
    for host in HOSTS {
        let sum = format!("\n    0123  {}\n", host.triple);
        assert!(notes.contains(&sum), "{notes}");
    }

    // A truncated archive fails before anything is published.
    fs::remove_file(work.path("arguments")).unwrap();
    work.file(&files[1], "truncated");
    let failed = log_of(&mut publish);
    assert_ne!(failed.status, Some(0), "{failed}");
    assert_eq!(calls_of_gh(&work), "", "{failed}");
}
