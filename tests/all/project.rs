//! The files of the project that users copy, and stubs for the programs that they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use crate::mock::{KEY, SECRET, SIGNATURE};
use crate::run::{Folder, Run};

/// A secret of the store, which must not be in a log.
pub const TOKEN: &str = "token-of-the-store";

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the text of a file of the project.
pub fn text(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the last document.
pub fn yaml(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).unwrap().pop().unwrap()
}

/// Writes an executable script for sh, which knows its folder.
pub fn stub(folder: &Folder, name: &str, script: &str) {
    let file = folder.file(
        name,
        format!(
            "#!/bin/sh\nhere='{}'\n{script}\n",
            folder.as_ref().display()
        ),
    );
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a job, and checks that its log has no secret.
pub fn log_of(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let run = Run::of(command, &output);
    for hidden in [KEY, SIGNATURE, SECRET, TOKEN] {
        assert!(
            !run.stdout.contains(hidden) && !run.stderr.contains(hidden),
            "a secret in the log\n{run}"
        );
    }
    run
}

/// Reads a file of a folder, if it exists.
pub fn read(folder: &Folder, name: &str) -> Option<String> {
    fs::read_to_string(folder.path(name)).ok()
}
