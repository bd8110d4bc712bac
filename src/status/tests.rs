//! The history: its ring, and its file.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::*;

fn note(status: &Status, outcome: &'static str) {
    status.record(Entry::new(outcome, []));
}

fn ids(status: &Status) -> Vec<u64> {
    status.history(KEPT).iter().map(|line| line.id).collect()
}

/// Runs the task that keeps the history until what is noted is written.
async fn keep(folder: &std::path::Path, status: &Arc<Status>, note: impl FnOnce()) {
    let file = HistoryFile::open(folder, status).expect("a folder");
    let stop = CancellationToken::new();
    let kept = tokio::spawn(file.run(stop.clone()));
    note();
    stop.cancel();
    kept.await.expect("no panic");
}

#[test]
fn an_entry_is_written_out_as_it_is_shown() {
    let status = Status::default();
    let slot = Slot::Model("m".parse().expect("a name"));
    let entry =
        Entry { by: Some(By::Admin), reason: Some("golden"), ..Entry::new("rolled_back", [(slot, "7".into())]) };
    status.record(entry);
    let line = &status.history(1)[0];
    let json: Value = serde_json::from_str(line.json.get()).expect("JSON");
    assert_eq!(
        (json["id"].as_u64(), json["by"].as_str(), json["outcome"].as_str()),
        (Some(1), Some("admin"), Some("rolled_back"))
    );
    assert_eq!(
        (&json["slots"][0], &json["versions"][0], &json["reason"]),
        (&"model m".into(), &"7".into(), &"golden".into())
    );
    let back = Line::parse(line.json.get().as_bytes()).expect("ours");
    assert_eq!((back.id, &*back.outcome, back.json.get()), (1, "rolled_back", line.json.get()));
}

#[test]
fn a_reader_takes_what_came_after_what_it_has_seen_and_the_ids_tell_of_a_gap() {
    let status = Status::default();
    (0..KEPT + 20).for_each(|_| note(&status, "applied"));
    let after = |id, limit| status.after(id, limit).iter().map(|line| line.id).collect::<Vec<_>>();
    assert_eq!(after(515, 3), [516, 517, 518]);
    assert_eq!(after(0, 2), [21, 22]);
    assert_eq!(after(520, 2), [0; 0]);
    assert_eq!(after(u64::MAX, 2), [0; 0]);
    assert_eq!((status.newest(), status.history(2)[1].id), (520, 519));
}

#[tokio::test]
async fn the_history_survives_a_restart_and_the_ids_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    for run in 0..3 {
        let status = Arc::default();
        keep(folder.path(), &status, || (0..2).for_each(|_| note(&status, "applied"))).await;
        assert_eq!(ids(&status), (1..=2 * run + 2).rev().collect::<Vec<u64>>());
    }
}

#[tokio::test]
async fn a_torn_line_costs_that_line_and_not_the_next_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history");
    let status = Arc::default();
    keep(folder.path(), &status, || (0..3).for_each(|_| note(&status, "applied"))).await;
    let text = std::fs::read(&path).expect("readable");
    let last = text.iter().rposition(|byte| *byte == b'{').expect("three lines");
    for cut in last + 1..text.len() {
        std::fs::write(&path, &text[..cut]).expect("writable");
        let status = Arc::default();
        keep(folder.path(), &status, || note(&status, "pinned")).await;
        // The last line is whole where only its end is missing.
        let whole = cut == text.len() - 1;
        assert_eq!(ids(&status), if whole { vec![4, 3, 2, 1] } else { vec![3, 2, 1] }, "cut at {cut}");
        let status = Arc::default();
        drop(HistoryFile::open(folder.path(), &status).expect("a folder"));
        assert_eq!(
            (ids(&status).len(), &*status.history(1)[0].outcome),
            (if whole { 4 } else { 3 }, "pinned"),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_line_that_is_none_of_ours_is_left_out() {
    let status = Arc::default();
    let folder = tempfile::tempdir().expect("a folder");
    let text = [
        r#"{"id":1,"outcome":"applied"}"#,
        "",
        "rubbish \u{0} \u{ff}",
        r#"{"id":2}"#,
        r#"{"id":-2,"outcome":"applied"}"#,
        "{\"id\":2,\"outcome\":\"applied\\nevent: x\"}",
        "{\"id\":2,\r\"outcome\":\"applied\"}",
        r#"{"id":18446744073709551615,"outcome":"applied"}"#,
        r#"{"id":7,"outcome":"rolled_back","new":"field"}"#,
        r#"{"id":6,"outcome":"applied"}"#,
    ];
    std::fs::write(folder.path().join("history"), text.join("\n")).expect("writable");
    drop(HistoryFile::open(folder.path(), &status).expect("a folder"));
    assert_eq!(ids(&status), [7, 1]);
    assert_eq!(status.history(1)[0].json.get(), text[8], "what a newer program wrote is shown as it is");
}

#[tokio::test]
async fn the_file_stays_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history");
    let lines = || std::fs::read_to_string(&path).expect("readable").lines().count();
    let mut most = 0;
    for run in 1..=30 {
        let status = Arc::default();
        keep(folder.path(), &status, || (0..70).for_each(|_| note(&status, "applied"))).await;
        assert_eq!(status.newest(), 70 * run);
        most = most.max(lines());
    }
    assert!((KEPT + 1..=2 * KEPT).contains(&most), "{most} lines");
    let status = Arc::default();
    keep(folder.path(), &status, || ()).await;
    assert_eq!(ids(&status).len(), KEPT);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_written_later() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("cache");
    std::fs::create_dir(&folder).expect("made");
    // Torn, so that it has to be written anew, for which there is no folder then.
    std::fs::write(folder.join("history"), "{").expect("writable");
    let status: Arc<Status> = Arc::default();
    let file = HistoryFile::open(&folder, &status).expect("a folder");
    std::fs::remove_dir_all(&folder).expect("gone");
    let stop = CancellationToken::new();
    let kept = tokio::spawn(file.run(stop.clone()));
    for _ in 0..3 {
        note(&status, "applied");
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    }
    std::fs::create_dir(&folder).expect("made");
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    note(&status, "pinned");
    stop.cancel();
    kept.await.expect("no panic");
    let status = Arc::default();
    drop(HistoryFile::open(&folder, &status).expect("a folder"));
    assert_eq!(ids(&status), [4, 3, 2, 1]);
}
