//! The reference of the command line is what the program says of itself; completions and pages come out.
//!
//! After a change of a flag: `HOTSERVE_GENERATE=1 cargo test --test main reference::`.

use crate::cli::{hotserve, run};
use crate::support::repository;

#[test]
fn the_reference_is_what_the_program_says() {
    let path = repository("docs/reference.md");
    let said = hotserve::cli::reference();
    if std::env::var_os("HOTSERVE_GENERATE").is_some() {
        std::fs::write(&path, &said).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(said == kept, "docs/reference.md is not what the program says: generate it anew");
}

#[test]
fn the_reference_names_every_setting_with_its_variable_and_default() {
    let text = hotserve::cli::reference();
    for row in [
        "| `--port PORT` | `PORT` | 8000 | Port to listen on; 0 takes any free one |",
        "| `--drain DURATION` | `HOTSERVE_DRAIN` | 25s |",
        "; in the file `pins` |",
        "## hotserve manifest show",
        "## hotserve config check",
        "| `--allow-unverified[=BOOL]` | `HOTSERVE_ALLOW_UNVERIFIED` | false |",
    ] {
        assert!(text.contains(row), "{row} is not in\n{text}");
    }
    assert_eq!(text.matches("| `--port PORT` |").count(), 3, "of serve, dev and healthcheck; config repeats none");
}

#[test]
fn each_shell_gets_its_completions() {
    for (shell, word) in
        [("bash", "complete -F _hotserve"), ("zsh", "#compdef hotserve"), ("fish", "complete -c hotserve")]
    {
        let (code, text) = run(hotserve(&["completions", shell]));
        assert_eq!(code, 0, "{shell}: {text}");
        for word in [word, "drain-delay", "healthcheck"] {
            assert!(text.contains(word), "{shell} has no {word}");
        }
    }
    assert_eq!(run(hotserve(&["completions", "csh"])).0, 64);
}

#[test]
fn there_is_a_page_of_the_manual_for_every_command() {
    let (code, page) = run(hotserve(&["man"]));
    assert_eq!(code, 0, "{page}");
    assert!(page.contains(".TH hotserve 1") && page.contains("hotserve\\-serve(1)"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("man1");
    let (code, text) = run(hotserve(&["man", "--out", folder.to_str().unwrap()]));
    assert_eq!(code, 0, "{text}");
    for name in ["hotserve.1", "hotserve-serve.1", "hotserve-config-show.1"] {
        assert!(folder.join(name).is_file(), "{name} is not there");
    }
    let serve = std::fs::read_to_string(folder.join("hotserve-serve.1")).unwrap();
    assert!(serve.contains("HOTSERVE_DRAIN_DELAY"), "{serve}");
}
