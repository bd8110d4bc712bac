//! `hotserve keygen`: make a key to sign messages with.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;

use crate::config;
use crate::trust::SigningKey;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File for the private key: it must not exist yet
    #[arg(long, value_name = "FILE", default_value = "hotserve-signing-key.pem")]
    out: PathBuf,
}

/// Writes the private key, and prints what servers need: their lines of the keyring alone go to the standard output.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let path = args.out.display();
    let key = SigningKey::generate()?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&args.out).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            config::Error::new("--out", format!("{path} exists, and a key is never overwritten: choose another"))
        }
        _ => config::Error::new("--out", format!("{path}: {error}")),
    })?;
    let written = file.write_all(key.to_pem()?.as_bytes()).and_then(|()| file.sync_all());
    written.with_context(|| format!("write {path}"))?;
    eprintln!("wrote the private key to {path}: sign with hotserve publish --sign {path}, and keep it from others");
    eprintln!("servers take the lines below, in the file of --trusted-keys:");
    println!("[[keys]]  # {}\npublic = \"{}\"", key.public().id(), key.public());
    Ok(())
}
