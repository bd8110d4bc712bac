//! The program as a person meets it: its exit codes, and what it says.

use std::io::Read as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub fn hotserve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotserve"));
    command.args(arguments);
    for (name, _) in std::env::vars() {
        if name.starts_with("AWS_") || name.starts_with("HOTSERVE_") || name == "KINESIS_STREAM" || name == "PORT" {
            command.env_remove(name);
        }
    }
    // Nobody's profile, and no instance to ask.
    command.env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

pub fn run(mut command: Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code().unwrap_or(-1), text)
}

#[test]
fn a_bad_setting_ends_the_program_with_64_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hotserve.toml");
    std::fs::write(&file, "stream = \"updates\"\nprot = 1\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, variable, named) in [
        (&["serve"][..], None, "--stream (KINESIS_STREAM)"),
        (&["serve", "--stream", "a b"], None, "--stream (KINESIS_STREAM)"),
        (&["serve", "--stream", "s", "--poll-interval", "fast"], None, "--poll-interval"),
        (&["serve", "--stream", "s", "--poll-interval", "10ms"], None, "--poll-interval (HOTSERVE_POLL_INTERVAL)"),
        (&["serve", "--stream", "s"], Some(("HOTSERVE_BODY_LIMIT", "lots")), "HOTSERVE_BODY_LIMIT"),
        (&["serve", "--stream", "s"], Some(("PORT", "http")), "environment variable PORT"),
        (&["serve", "--stream", "s", "--initial-state", "{"], None, "--initial-state (HOTSERVE_INITIAL_STATE)"),
        (&["serve", "--stream", "s", "--allow", "bucket"], None, "--allow (HOTSERVE_ALLOW)"),
        (&["serve", "--stream", "s", "--cache-dir", "/proc/nowhere"], None, "--cache-dir (HOTSERVE_CACHE_DIR)"),
        (&["serve", "--stream", "s", "--manifest", "m.json"], None, "--manifest (HOTSERVE_MANIFEST)"),
        (&["publish", "state", "1", "--stream", "s", "--manifest", "s3://b"], None, "--manifest (HOTSERVE_MANIFEST)"),
        (&["manifest", "show"], None, "--manifest (HOTSERVE_MANIFEST)"),
        (&["serve", "--stream", "s", "--require-signature"], None, "--trusted-keys (HOTSERVE_TRUSTED_KEYS)"),
        (&["serve", "--stream", "s"], Some(("HOTSERVE_REQUIRE_SIGNATURE", "model")), "--trusted-keys"),
        (&["serve", "--stream", "s", "--require-signature", "some"], None, "--require-signature"),
        (&["serve", "--stream", "s", "--trusted-keys", file], None, "--trusted-keys (HOTSERVE_TRUSTED_KEYS)"),
        (&["serve", "--stream", "s"], Some(("HOTSERVE_TRUSTED_KEYS", "")), "HOTSERVE_TRUSTED_KEYS"),
        (
            &["publish", "state", "1", "--stream", "s", "--sign", "/nonexistent"],
            None,
            "--sign (HOTSERVE_SIGNING_KEY_FILE)",
        ),
        (&["keygen", "--out", "/nonexistent/key"], None, "--out"),
        (&["serve", "--config", "/nonexistent.toml"], None, "--config /nonexistent.toml"),
        (&["serve", "--config", file], None, "prot"),
        (&["publish", "state", "1"], None, "--stream (KINESIS_STREAM)"),
        (&["publish", "state", "{", "--stream", "s"], None, "VALUE"),
        (&["publish", "model", "/dev/null", "--name", "../m", "--stream", "s"], None, "--name"),
        (&["publish", "model", "/dev/null", "--name", "m", "--stream", "s"], None, "--format"),
        (&["dev", "--port", "0", "--faults", "/nonexistent.toml"], None, "--faults /nonexistent.toml"),
        (&["dev", "--port", "0", "--faults", file], None, "prot"),
        (&["fly"], None, "fly"),
    ] {
        let mut command = hotserve(arguments);
        command.envs(variable);
        let (code, text) = run(command);
        assert_eq!(code, 64, "{arguments:?} {variable:?}: {text}");
        assert!(text.contains(named), "{arguments:?} does not name {named}: {text}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    assert_eq!(run(hotserve(&["--help"])).0, 0);
    let (code, text) = run(hotserve(&["--version"]));
    assert!(code == 0 && text.starts_with(concat!("hotserve ", env!("CARGO_PKG_VERSION"))), "{text}");
}

#[test]
fn publishing_without_a_dev_server_says_how_to_start_one() {
    let mut command = hotserve(&["publish", "state", "1", "--dev", "1"]);
    // What hotserve dev itself says to export must not be in the way.
    command.env("TMPDIR", "/nonexistent").env_remove("XDG_RUNTIME_DIR").env("KINESIS_STREAM", "hotserve-dev");
    let (code, text) = run(command);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no hotserve dev is running"), "{text}");
}

#[test]
fn a_port_in_use_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flag, named) in [("--port", "--port (PORT)"), ("--kinesis-port", "--kinesis-port"), ("--s3-port", "--s3-port")]
    {
        let mut arguments = vec!["dev"];
        for other in ["--port", "--kinesis-port", "--s3-port"] {
            arguments.extend([other, if other == flag { &port } else { "0" }]);
        }
        let (code, text) = run(hotserve(&arguments));
        assert_eq!(code, 64, "{text}");
        assert!(text.contains(named) && text.contains(&port) && text.contains("choose another"), "{text}");
    }
}

/// A program that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a server until its log says something, and checks that it goes on running.
fn says(mut command: Command, expected: &str) {
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut child = Running(child);
    let mut log = child.0.stderr.take().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = log.read(&mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..read]).into_owned()).is_err() {
                return;
            }
        }
    });
    let (mut text, deadline) = (String::new(), Instant::now() + Duration::from_secs(60));
    while !text.contains(expected) {
        let rest = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(rest) {
            Ok(more) => text.push_str(&more),
            Err(_) => panic!("never said {expected:?}: {text}"),
        }
    }
    assert!(child.0.try_wait().unwrap().is_none(), "it must go on: {text}");
}

#[test]
fn without_credentials_or_a_region_the_server_says_so_and_stays_up() {
    let serve = || hotserve(&["serve", "--stream", "s", "--port", "0", "--host", "127.0.0.1"]);
    says(serve(), "no AWS region: set AWS_REGION");
    let mut command = serve();
    command.env("AWS_REGION", "us-east-1");
    says(command, "no AWS credentials");
    let mut command = serve();
    command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
    // Nobody listens on port 1.
    command.env("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:1");
    says(command, "does not answer");
}

#[test]
fn check_says_whether_a_server_would_take_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let iris = hotserve_models::samples::all().iter().find(|sample| sample.name == "iris").unwrap();
    let model = write("iris.json", iris.bytes);
    let golden = write("golden.json", iris.golden.as_bytes());

    let (code, said) = run(hotserve(&["check", &model, "--golden", &golden]));
    assert_eq!(code, 0, "{said}");
    for word in ["would be served", "linear", "petal", "agree", "one row", "1024 rows"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    let (code, said) = run(hotserve(&["check", &model, "--json"]));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["engine"]), (0, &serde_json::json!("linear")), "{said}");
    assert!(report["row"]["p50_seconds"].as_f64().unwrap() > 0.0);

    let broken = write("broken.json", &iris.bytes[..iris.bytes.len() - 2]);
    for (arguments, code, says) in [
        (&["check", &broken, "--format", "linear"][..], 1, "refused as malformed"),
        (&["check", &model, "--format", "tensorflow"], 1, "refused as unsupported_format"),
        (&["check", &golden], 64, "--format"),
        (&["check", &model, "--golden", &model], 64, "--golden"),
        (&["check", &model, "--contract", "/nonexistent"], 64, "--contract"),
    ] {
        let (found, said) = run(hotserve(arguments));
        assert!(found == code && said.contains(says), "{arguments:?}: {found}, {said}");
    }
}
