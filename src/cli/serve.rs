//! `hotserve serve`: follow a stream and serve what it brings.

mod reload;
mod systemd;

use std::path::PathBuf;
use std::sync::Arc;

use crate::app::{Adapters, App, Boards};
use crate::aws::Aws;
use crate::cli::config::misspelt;
use crate::config::{self, Config, Settings};
use crate::failpoint;
use crate::http::limits;
use crate::shutdown;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A TOML file with settings, named as the flags are; a flag or an environment variable wins over it
    #[arg(long, env = "HOTSERVE_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Args {
    /// All that can be known of the settings before anything is opened.
    pub(super) fn validate(self) -> Result<Config, config::Error> {
        let file = self.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
        let config = self.settings.or(file).validate()?;
        failpoint::arm().map_err(|error| config::Error::new("HOTSERVE_FAILPOINT", error.to_string()))?;
        Ok(config)
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    // First of all: until it is heard, SIGHUP ends the process.
    let hangups = shutdown::hangups()?;
    let config = args.validate()?;
    for variable in misspelt() {
        tracing::warn!("{variable}");
    }
    let durable = config.store.cache_dir.is_some();
    let stream = config.stream.name.clone();

    shutdown::survive_file_size_limit()?;
    limits::raise_open_files();
    let boards = Boards::default();
    let mut reloads = config.reloads.clone();
    let aws = Aws::from_env().await;
    let adapters = Adapters::aws(&aws, &config, &boards);
    let app = App::bind(config, adapters, boards.clone()).await.map_err(as_setting)?;
    let shutdown = shutdown::on_signal()?;
    tracing::info!(addr = %app.addr(), stream, "listening; /readyz turns 200 when the stream has been caught up with");
    if let Some(addr) = app.ops_addr() {
        tracing::info!(%addr, "the page, /metrics and all that is for operators is here, and nowhere else");
    }
    if let Some(addr) = app.admin_addr() {
        tracing::info!(%addr, "commands are taken at /admin/control from who has the admin token or a client certificate");
    }
    if !durable {
        tracing::info!("no --cache-dir: after a restart, everything is read from the stream again");
    }
    if let Some(tls) = app.tls() {
        reloads.add("certificate", move || Ok(tls.reload()?.then(|| "new connections get another one".to_owned())));
    }
    let systemd = systemd::Systemd::from_env().map(Arc::new);
    // Both end with the process.
    let told = systemd.clone().map(|systemd| tokio::spawn(systemd::follow(systemd, app.http())));
    tokio::spawn(reload::follow(hangups, reloads, boards, systemd));
    app.run(shutdown).await?;
    tracing::info!("stopped");
    if let Some(told) = told {
        told.abort();
    }
    Ok(())
}

/// A cache folder that cannot be used is a setting that is wrong, as are those that are only seen to be when it starts.
pub(super) fn as_setting(error: crate::app::Error) -> anyhow::Error {
    match error {
        crate::app::Error::Cache { folder, source } => {
            let setting = format!("--cache-dir (HOTSERVE_CACHE_DIR) {folder}");
            config::Error::new(setting, crate::error::chain(&source)).into()
        }
        crate::app::Error::Setting(error) => error.into(),
        error => error.into(),
    }
}
