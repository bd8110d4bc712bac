//! `hotserve serve`: follow a stream and serve what it brings.

use std::path::PathBuf;

use crate::app::{Adapters, App, Boards};
use crate::aws::Aws;
use crate::config::{self, Settings};
use crate::failpoint;
use crate::http::limits;
use crate::shutdown;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A TOML file with settings, named as the flags are; a flag or an environment variable wins over it
    #[arg(long, env = "HOTSERVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let file = args.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
    let config = args.settings.or(file).validate()?;
    failpoint::arm().map_err(|error| config::Error::new("HOTSERVE_FAILPOINT", error.to_string()))?;
    let durable = config.store.cache_dir.is_some();
    let stream = config.stream.name.clone();

    shutdown::survive_file_size_limit()?;
    limits::raise_open_files();
    let boards = Boards::default();
    let aws = Aws::from_env().await;
    let adapters = Adapters::aws(&aws, &config, &boards);
    let app = App::bind(config, adapters, boards).await.map_err(as_setting)?;
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
    app.run(shutdown).await?;
    tracing::info!("stopped");
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
