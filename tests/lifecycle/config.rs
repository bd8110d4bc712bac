//! `hotserve config`: what is in force, where it comes from, and what is wrong.

use serde_json::{Value, json};

use crate::cli::{hotserve, run};

#[test]
fn each_setting_is_shown_with_its_origin_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hotserve.toml");
    std::fs::write(&file, "stream = \"from-file\"\nport = 1\npins = [\"m=1\"]\n").unwrap();
    let file = file.to_str().unwrap();
    let ask = |more: &[&str]| {
        let mut command = hotserve(&["config", "show", "--config", file, "--drain", "9s"]);
        command.args(more).env("PORT", "2").env("HOTSERVE_ADMIN_TOKEN", "0123456789abcdef-secret");
        let (code, text) = run(command);
        assert_eq!(code, 0, "{text}");
        assert!(!text.contains("secret"), "{text}");
        text
    };
    let text = ask(&[]);
    let line = |name: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("stream"), format!("stream from-file file {file}"));
    assert_eq!(line("port"), "port 2 variable PORT");
    assert_eq!(line("drain"), "drain 9s flag --drain");
    assert_eq!(line("pin"), format!("pin m=1 file {file}"));
    assert_eq!(line("body-limit"), "body-limit 8MiB default");
    assert_eq!(line("max-row-time"), "max-row-time – default");
    assert_eq!(line("admin-token"), "admin-token (set, and not shown) variable HOTSERVE_ADMIN_TOKEN");

    let shown: Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    let of = |name: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["name"] == name).cloned().unwrap()
    };
    assert_eq!(of("port"), json!({"name": "port", "value": "2", "origin": {"kind": "variable", "name": "PORT"}}));
    assert_eq!(of("stream")["origin"], json!({"kind": "file", "name": file}));
    assert_eq!(of("max-row-time"), json!({"name": "max-row-time", "value": null, "origin": {"kind": "default"}}));
}

#[test]
fn a_check_ends_as_the_server_would() {
    let check = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = hotserve(&["config", "check"]);
        command.args(arguments).envs(variable);
        run(command)
    };
    let (code, text) = check(&["--stream", "updates"], None);
    assert!(code == 0 && text.contains("the stream updates and listen on 0.0.0.0:8000"), "{code}: {text}");
    for (arguments, variable, named) in [
        (&[][..], None, "--stream (KINESIS_STREAM)"),
        (&["--stream", "s", "--poll-interval", "1ms"], None, "--poll-interval (HOTSERVE_POLL_INTERVAL)"),
        (&["--stream", "s", "--drain-delay", "1m"], None, "--drain-delay (HOTSERVE_DRAIN_DELAY)"),
        (&["--stream", "s"], Some(("HOTSERVE_TRUSTED_KEYS", "/nonexistent")), "/nonexistent"),
        (&["--stream", "s"], Some(("PORT", "http")), "PORT"),
        (&["--config", "/nonexistent.toml"], None, "--config /nonexistent.toml"),
    ] {
        let (code, text) = check(arguments, variable);
        assert!(code == 64 && text.contains(named), "{arguments:?} {variable:?}: {code}: {text}");
    }
    let (code, text) = check(&["--stream", "s"], Some(("HOTSERVE_BODYLIMIT", "1")));
    let warned = "warning: nothing reads the variable HOTSERVE_BODYLIMIT: did you mean HOTSERVE_BODY_LIMIT?";
    assert!(code == 0 && text.contains(warned), "{code}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_warns_of_a_variable_that_nobody_reads() {
    let server = super::Process::start(None, |command, _| {
        command.env("HOTSERVE_PORT", "9000").env("HOTSERVE_SERVICE_HOST", "10.0.0.1");
    })
    .await;
    let log = server.log();
    assert!(log.contains("nothing reads the variable HOTSERVE_PORT: did you mean PORT?"), "{log}");
    assert!(!log.contains("HOTSERVE_SERVICE_HOST"), "{log}");
    server.stop().await;
}
