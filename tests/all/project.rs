//! The files of the project that users copy, and stubs for the programs that they call.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use crate::mock::*;
use crate::run::*;

/// A secret of the store, which must not be in a log.
pub const TOKEN: &str = "token-of-the-store";

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the text of a file of the project.
#[track_caller]
pub fn text(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(name));
    text.expect(name)
}

/// Returns the last document.
#[track_caller]
pub fn yaml(text: &str) -> Yaml {
    let mut documents = YamlLoader::load_from_str(text).unwrap();
    documents.pop().unwrap()
}

/// Writes an executable script for sh, which knows its folder as `$here`.
pub fn stub(folder: &Folder, name: &str, script: &str) {
    let here = folder.as_ref().display();
    let script = format!("#!/bin/sh\nhere='{here}'\n{script}\n");
    let file = folder.file(name, script);
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(file, executable).unwrap();
}

/// Returns a PATH with this folder before those of the system.
pub fn path_with(folder: &Path) -> String {
    format!("{}:/usr/bin:/bin", folder.display())
}

/// Runs a job, and checks that its log has no secret.
#[track_caller]
pub fn log_of(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let run = Run::of(command, &output);
    let log = format!("{}{}", run.stdout, run.stderr);
    for hidden in [KEY, SIGNATURE, SECRET, TOKEN] {
        assert!(!log.contains(hidden), "a secret in the log\n{run}");
    }
    run
}

/// Runs a job, and checks that it exits with status 0.
#[track_caller]
pub fn succeeds(command: &mut Command) {
    let run = log_of(command);
    assert_eq!(run.status, Some(0), "{run}");
}

/// Reads a file of a folder, if it exists.
pub fn read(folder: &Folder, name: &str) -> Option<String> {
    let path = folder.path(name);
    fs::read_to_string(path).ok()
}
