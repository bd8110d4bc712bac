//! The memory budget: what does not fit is refused, or the old one goes first and comes back if the new one fails.

use hotserve::config::{MemoryBudget, MemoryPolicy};
use http::StatusCode;
use serde_json::json;

use crate::isolation::Fed;
use crate::misbehaving::{artifact, ballast};
use crate::support::until;

const MIB: usize = 1 << 20;

/// 32 MiB: two models of 8 fit one beside the other while one is loaded, two of 12 do not.
async fn fed(policy: MemoryPolicy) -> Fed {
    Fed::start(|settings| {
        settings.memory_budget = Some(MemoryBudget::Bytes(32 << 20));
        settings.memory_policy = Some(policy);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_beside_the_old_one_is_refused_and_what_fits_is_served() {
    let fed = fed(MemoryPolicy::Availability).await;
    assert_eq!(fed.server.metric("hotserve_memory_budget_bytes").await, f64::from(32 << 20));
    fed.put(1, ballast(8 * MIB, 1, 0), json!({})).await;
    fed.until_served(1).await;
    let used = until("what loading took to be given back", async || {
        let used = fed.server.metric("hotserve_memory_used_bytes").await;
        (used < f64::from(9 << 20)).then_some(used)
    })
    .await;
    assert!(used >= f64::from(8 << 20), "{used}");
    for (version, size) in [(2, 12), (3, 40)] {
        fed.put(version, ballast(size * MIB, version, 0), json!({})).await;
        let (reason, detail) = fed.until_refused(version).await;
        assert_eq!(reason, "memory", "{detail}");
        assert!(detail.contains("--memory-budget"), "{detail}");
    }
    // Nothing tells its size: it dies of what is left.
    fed.put(4, artifact("allocate", "load", 4), json!({})).await;
    assert_eq!(fed.until_refused(4).await.0, "memory");
    fed.until_served(1).await;
    // Again and again: what was replaced does not stay.
    for version in 5..10 {
        fed.put(version, ballast(8 * MIB, version, 0), json!({})).await;
        fed.until_served(version).await;
    }
    until("only the served one and the one before to be there", async || {
        (fed.server.metric("hotserve_memory_used_bytes").await < f64::from(17 << 20)).then_some(())
    })
    .await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_a_way_back_goes_for_a_new_one_and_is_loaded_again_when_it_is_wanted() {
    let fed = fed(MemoryPolicy::Availability).await;
    for version in [1, 2, 3] {
        fed.put(version, ballast(8 * MIB, version, 0), json!({})).await;
        fed.until_served(version).await;
    }
    fed.control(json!({"action": "rollback", "model": "m"})).await;
    fed.until_served(2).await;
    fed.control(json!({"action": "rollback", "model": "m"})).await;
    fed.until_served(1).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_in_memory_where_that_is_not_wanted() {
    let fed = Fed::start(|settings| settings.warm_previous = Some(false)).await;
    for version in [1, 2] {
        fed.put(version, ballast(8 * MIB, version, 0), json!({})).await;
        fed.until_served(version).await;
    }
    until("only one model to be there", async || {
        (fed.server.metric("hotserve_memory_used_bytes").await < f64::from(9 << 20)).then_some(())
    })
    .await;
    fed.control(json!({"action": "rollback", "model": "m"})).await;
    fed.until_served(1).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_resources_count_the_old_one_goes_first_and_comes_back_if_the_new_one_fails() {
    let fed = fed(MemoryPolicy::Resource).await;
    fed.put(1, ballast(8 * MIB, 1, 0), json!({})).await;
    fed.until_served(1).await;
    let reloading = async || {
        for path in ["/predict/m", "/predict"] {
            let reply = fed.server.client.post(path, r#"{"instances":[[0]]}"#).await;
            if reply.status == StatusCode::OK {
                return None;
            }
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{}", reply.text());
            assert_eq!(reply.json()["code"], "model_reloading");
            assert!(!reply.header("retry-after").is_empty());
        }
        Some(())
    };
    fed.put(2, ballast(13 * MIB, 2, 1000), json!({})).await;
    until("the slot to say that it comes back", reloading).await;
    fed.until_served(2).await;

    // This one passes no gate, and takes as much.
    let mut bad = artifact("panic", "infer", 3);
    bad.resize(13 * MIB, b' ');
    fed.put(3, bad, json!({})).await;
    assert_eq!(fed.until_refused(3).await.0, "panic");
    fed.until_served(2).await;
    assert_eq!(fed.server.client.get("/models").await.json()["models"].as_array().unwrap().len(), 1);

    // What can never fit does not cost the old one a moment.
    fed.put(4, ballast(40 * MIB, 4, 0), json!({})).await;
    assert_eq!(fed.until_refused(4).await.0, "memory");
    fed.put(5, ballast(8 * MIB, 5, 0), json!({})).await;
    fed.until_served(5).await;
    fed.server.stop().await;
}
