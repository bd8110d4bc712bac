//! What can only be seen in a process of its own: its threads, and its environment.

use hotserve::Builder;
use hotserve::config::Settings;
use serde_json::Value;

use super::{Host, announce, fed, put};
use crate::support::until;

/// Runs one test of this program in a process of its own, with this in its environment.
fn alone(test: &str, environment: &[(&str, &str)]) {
    let name = format!("embedding::alone::{test}");
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([name.as_str(), "--exact", "--nocapture"]).env("EMBEDDING_ALONE", "1");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn is_alone() -> bool {
    std::env::var_os("EMBEDDING_ALONE").is_some()
}

#[test]
fn no_thread_outlives_a_stop() {
    alone("no_thread_outlives_a_stop_alone", &[]);
}

#[tokio::test]
async fn no_thread_outlives_a_stop_alone() {
    if !is_alone() {
        return;
    }
    let threads = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        let ours = ["background", "loader", "reaper", "compute-", "probe"];
        tasks.filter_map(name).filter(|name| ours.iter().any(|ours| name.starts_with(ours))).collect()
    };
    assert_eq!(threads(), [""; 0]);
    let (builder, feeder) = fed();
    let host = Host::of(builder).await;
    put(&feeder, &announce("m", 1, &Value::Null)).await;
    host.until_predicted("m", 1).await;
    assert!(threads().len() >= 4, "{:?}", threads());
    host.stop().await;
    until("all threads to have ended", async || threads().is_empty().then_some(())).await;

    // Nor one that was only dropped, or never started.
    let (builder, _feeder) = fed();
    let running = builder.build().await.unwrap().start();
    let (builder, _feeder) = fed();
    drop((running, builder.build().await.unwrap()));
    until("all threads to have ended", async || threads().is_empty().then_some(())).await;
}

#[test]
fn a_builder_reads_the_environment_and_the_file_as_the_program_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hotserve.toml");
    std::fs::write(&file, "stream = \"of-the-file\"\nport = 1\ninitial-state = \"7\"\n").unwrap();
    let file = file.to_str().unwrap();
    alone("settings_of_the_environment_alone", &[("HOTSERVE_CONFIG", file), ("PORT", "2")]);
    alone("wrong_settings_of_the_environment_alone", &[("PORT", "many")]);
}

#[test]
fn settings_of_the_environment_alone() {
    if is_alone() {
        let settings = Settings::from_env().unwrap();
        let found = (settings.stream.as_deref(), settings.port, settings.initial_state.as_deref());
        assert_eq!(found, (Some("of-the-file"), Some(2), Some("7")));
    }
}

#[test]
fn wrong_settings_of_the_environment_alone() {
    if is_alone() {
        let fault = Builder::from_env().err().unwrap().to_string();
        assert!(fault.contains("many") && fault.contains("port"), "{fault}");
    }
}
