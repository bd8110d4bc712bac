//! Tells the program which revision it is built from.
//!
//! `HOTSERVE_REVISION` says it where there is no repository, as in the build of an image. Else a release asks git. Other
//! builds do not: each commit would have to build them anew.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HOTSERVE_REVISION");
    let said = var("HOTSERVE_REVISION").filter(|revision| revision.bytes().all(|byte| byte.is_ascii_graphic()));
    let is_release = var("PROFILE").as_deref() == Some("release");
    let revision = said.or_else(|| if is_release { from_git() } else { None });
    let version = var("CARGO_PKG_VERSION").unwrap_or_default();
    let shown = revision.as_ref().map_or_else(|| version.clone(), |revision| format!("{version} ({revision})"));
    println!("cargo:rustc-env=HOTSERVE_VERSION={shown}");
    println!("cargo:rustc-env=HOTSERVE_BUILT_FROM={}", revision.as_deref().unwrap_or("unknown"));
}

#[expect(clippy::disallowed_methods, reason = "a build has no settings")]
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn from_git() -> Option<String> {
    // Of this package, and not of a repository that it was copied into.
    Path::new(".git").try_exists().ok().filter(|exists| *exists)?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    // HEAD changes with the branch, its log with every commit. A file that is not there would build anew each time.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
