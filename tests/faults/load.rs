//! Too much at once: a flood of messages, a herd of instances, a load that does not end.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use hotserve::app::{Adapters, App, Boards};
use hotserve::config::Settings;
use hotserve::embedded::faults::{Action, Faults, Rules};
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::store::memory::MemoryStore;
use hotserve_models::{LinearLoader, LoadError, Loader, Loaders, Model};

use super::*;
use crate::support::Server;

/// The linear format, loaded slowly, and counted.
#[derive(Default)]
struct Counted {
    loads: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    /// A load waits for this to be closed, if it is there.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

struct Slow(Arc<Counted>);

impl Loader for Slow {
    fn format(&self) -> &'static str {
        "linear"
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        LinearLoader.recognizes(bytes)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let count = &self.0;
        count.loads.fetch_add(1, Ordering::SeqCst);
        count.most.fetch_max(count.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        if let Some(gate) = &*count.gate.lock().unwrap_or_else(PoisonError::into_inner) {
            // It is closed, never used.
            let _ = gate.recv();
        }
        count.now.fetch_sub(1, Ordering::SeqCst);
        LinearLoader.load(bytes)
    }
}

async fn fed(count: &Arc<Counted>) -> (Server, Feeder) {
    let settings = Settings {
        stream: Some("memory".to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        ..Settings::default()
    };
    let (source, feeder) = MemorySource::new();
    let mut loaders = Loaders::bundled();
    loaders.register(Slow(Arc::clone(count)));
    let adapters = Adapters { source: Box::new(source), s3: Arc::new(MemoryStore::default()), loaders };
    let app = App::bind(settings.validate().unwrap(), adapters, Boards::default()).await.unwrap();
    (Server::run(app).ready().await, feeder)
}

fn inline(version: u64) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.encode(constant_model(version));
    json!({"model": {"name": "m", "version": version, "format": "linear", "inline": bytes}}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_flood_to_one_slot_few_are_loaded_one_at_a_time_and_the_last_is_served() {
    const MESSAGES: u64 = 5_000;
    let count = Arc::new(Counted::default());
    let (server, feeder) = fed(&count).await;
    feeder.put(inline(1)).await;
    server.until_model(1).await;
    let (stop, client) = (Arc::new(AtomicBool::new(false)), Client::to(server.addr));
    let reader = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut requests = 0;
            while !stop.load(Ordering::Relaxed) {
                let reply = client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
                assert_eq!(reply.status, StatusCode::OK);
                requests += 1;
            }
            requests
        }
    });
    let begun = Instant::now();
    for version in 2..=MESSAGES {
        feeder.put(inline(version)).await;
    }
    let flood = begun.elapsed();
    // The next message is applied too.
    feeder.put(json!({"version": 1, "state": "after"}).to_string()).await;
    server.until_state("after").await;
    server.until_model(MESSAGES).await;
    stop.store(true, Ordering::Relaxed);
    let (requests, loads) = (reader.await.unwrap(), count.loads.load(Ordering::SeqCst));
    println!("{MESSAGES} messages in {flood:.1?}: {loads} loads, {requests} requests, none failed");
    assert_eq!(count.most.load(Ordering::SeqCst), 1, "loads at the same time");
    // A load takes 20 ms: as many as fit into the flood, and one or two after it.
    let fit = flood.as_millis() / 20 + 3;
    assert!((loads as u128) <= fit, "{loads} loads in {flood:?}");
    assert!(loads < 2_500, "{loads} loads of {MESSAGES} messages: nothing is conflated");
    let superseded = server.metric(r#"hotserve_updates_total{kind="model",outcome="superseded"}"#).await;
    let applied = server.metric(r#"hotserve_updates_total{kind="model",outcome="applied"}"#).await;
    assert_eq!(superseded + applied, MESSAGES as f64, "each is accounted for");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_does_not_end_does_not_keep_the_server_from_ending() {
    let count = Arc::new(Counted::default());
    let (server, feeder) = fed(&count).await;
    feeder.put(inline(1)).await;
    server.until_model(1).await;
    let (hold, gate) = mpsc::channel();
    *count.gate.lock().unwrap() = Some(gate);
    feeder.put(inline(2)).await;
    until("the load to begin", async || (count.now.load(Ordering::SeqCst) == 1).then_some(())).await;
    assert_eq!(server.model().await, "1");
    server.stop().await;
    assert_eq!(count.now.load(Ordering::SeqCst), 1, "it was still being loaded");
    drop(hold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_that_restarts_serves_from_its_disks_and_asks_s3_for_nothing() {
    const SERVERS: usize = 12;
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    cloud.put(json!({"model": cloud.upload("m", 1, "linear", &constant_model(1)).await}).to_string()).await;
    let start = async || {
        futures_util::future::join_all((0..SERVERS).map(async |number| {
            let folder = cloud.path(&format!("cache {number}"));
            cloud.server_with(|settings| settings.cache_dir = Some(folder)).await.ready().await
        }))
        .await
    };
    let stop = async |servers: Vec<Server>| futures_util::future::join_all(servers.into_iter().map(Server::stop)).await;
    let get: Action = "s3:*".parse().unwrap();
    let before = faults.count(&get).calls;
    stop(start().await).await;
    assert_eq!(faults.count(&get).calls - before, SERVERS as u64, "each fetches it once");

    // All at once, on a stream that answers five reads a second to all of them.
    faults.update(|rules| rules.kinesis.reads_per_second = Some(5));
    let before = faults.count(&get).calls;
    let servers = start().await;
    for server in &servers {
        assert_eq!((server.state().await, server.model().await), (json!(1), "1".to_owned()));
    }
    assert_eq!(faults.count(&get).calls, before);
    stop(servers).await;
}
