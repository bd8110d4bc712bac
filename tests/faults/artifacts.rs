//! S3 fails in every way it can while an artifact is fetched.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use aws_sdk_s3::primitives::ByteStream;
use axum::Router;
use axum::response::{IntoResponse as _, Response};
use hotserve::aws::{Aws, Endpoints, Retries};
use hotserve::config::{HumanDuration, Settings, Size};
use hotserve::embedded::faults::{Action, Answer, Fault, Faults, Rules};
use hotserve::metrics::Metrics;
use hotserve::notification::Location;
use hotserve::store::s3::S3Store;
use hotserve::store::{Cache, Fetcher};
use serde_json::Value;

use super::*;
use crate::support::{Server, padded_model};

/// Large enough to be torn on its way.
const SIZE: usize = 1 << 20;
const FETCHED: &str = "hotserve_artifact_fetch_bytes_total";
const RESUMED: &str = "hotserve_artifact_fetch_resumes_total";

fn get() -> Action {
    "s3:GetObject".parse().unwrap()
}

fn strike(answer: Answer) -> Fault {
    Fault::on(get(), answer)
}

fn times(answer: Answer, times: u64) -> Fault {
    Fault { times: Some(times), ..strike(answer) }
}

/// A server that serves version 1 of the model `m`, and what goes wrong around it from then on.
struct Scene {
    faults: Arc<Faults>,
    cloud: Cloud,
    server: Server,
}

impl Scene {
    async fn start() -> Self {
        Self::patient(Duration::from_secs(2)).await
    }

    /// One that tries for so long.
    async fn patient(deadline: Duration) -> Self {
        let faults = Faults::new(Rules::default());
        let cloud = Cloud::faulty(1, &faults).await;
        let server = cloud.server_with(|settings| settings.fetch_deadline = Some(HumanDuration(deadline))).await;
        let scene = Self { faults, cloud, server: server.ready().await };
        scene.announce(scene.upload(1).await).await;
        scene.server.until_model(1).await;
        scene
    }

    async fn upload(&self, version: u64) -> Value {
        self.cloud.upload("m", version, "linear", &padded_model(version, SIZE)).await
    }

    async fn announce(&self, model: Value) {
        self.cloud.put(json!({ "model": model }).to_string()).await;
    }

    fn set(&self, faults: Vec<Fault>) {
        self.faults.update(|rules| rules.faults = faults);
    }

    fn calls(&self) -> u64 {
        self.faults.count(&get()).calls
    }

    /// Announces version 2, which is refused for this reason while version 1 is served, and then version 3, which is
    /// served. Answers how often the object of version 2 was asked for.
    async fn refuses(self, faults: Vec<Fault>, reason: &str) -> u64 {
        let (bad, good) = (self.upload(2).await, self.upload(3).await);
        self.set(faults);
        let before = self.calls();
        self.announce(bad).await;
        self.server.until_refused(reason, 1.0).await;
        let calls = self.calls() - before;
        assert_eq!(self.server.model().await, "1");
        self.set(vec![]);
        self.announce(good).await;
        self.server.until_model(3).await;
        self.server.stop().await;
        calls
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_artifact_is_gone_on_with_and_no_byte_comes_twice() {
    let scene = Scene::patient(Duration::from_secs(30)).await;
    let (model, before) = (scene.upload(2).await, scene.calls());
    scene.set(vec![times(Answer::CutBody, 3)]);
    scene.announce(model).await;
    scene.server.until_model(2).await;
    assert_eq!(scene.calls() - before, 4);
    assert_eq!(scene.server.metric(RESUMED).await, 3.0);
    assert_eq!(scene.server.metric(FETCHED).await, 2.0 * SIZE as f64, "of two versions");
    scene.server.stop().await;
}

/// Tears the transfer of version 2, overwrites its object, and lets S3 answer again.
async fn overwritten(scene: &Scene, announced: Value, first: &[u8], then: &[u8]) {
    let key = announced["uri"].as_str().unwrap().strip_prefix(&format!("s3://{BUCKET}/")).unwrap().to_owned();
    let put = async |bytes: &[u8]| {
        let s3 = scene.cloud.aws.s3(Retries::Standard);
        s3.put_object().bucket(BUCKET).key(&key).body(ByteStream::from(bytes.to_vec())).send().await.unwrap();
    };
    put(first).await;
    let before = scene.calls();
    scene.set(vec![times(Answer::CutBody, 1), strike(Answer::Unavailable)]);
    scene.announce(announced).await;
    until("the transfer to be torn", async || (scene.calls() - before >= 2).then_some(())).await;
    put(then).await;
    scene.set(vec![]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_overwritten_meanwhile_is_read_anew_and_refused_as_changed() {
    let scene = Scene::patient(Duration::from_secs(30)).await;
    let announced = scene.upload(2).await;
    overwritten(&scene, announced, &padded_model(2, SIZE), &padded_model(9, SIZE)).await;
    scene.server.until_refused("changed", 1.0).await;
    assert_eq!(scene.server.model().await, "1");
    assert_eq!(scene.server.refused("digest").await, 0.0, "the digest would only say that it is wrong");
    scene.announce(scene.upload(3).await).await;
    scene.server.until_model(3).await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_overwritten_with_what_was_announced_is_served() {
    let scene = Scene::patient(Duration::from_secs(30)).await;
    let announced = scene.upload(2).await;
    overwritten(&scene, announced, &padded_model(9, SIZE), &padded_model(2, SIZE)).await;
    scene.server.until_model(2).await;
    assert_eq!(scene.server.metric(RESUMED).await, 0.0, "nothing of the old bytes is in it");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_costs_one_more_fetch_and_two_refuse_the_artifact() {
    let scene = Scene::start().await;
    let (model, before) = (scene.upload(2).await, scene.calls());
    scene.set(vec![times(Answer::GarbleBody, 1)]);
    scene.announce(model).await;
    scene.server.until_model(2).await;
    assert_eq!(scene.calls() - before, 2);
    assert_eq!(scene.server.refused("digest").await, 0.0);
    scene.server.stop().await;

    let calls = Scene::start().await.refuses(vec![strike(Answer::GarbleBody)], "digest").await;
    assert_eq!(calls, 2, "no storm of retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_end_is_stopped_at_the_announced_size() {
    let scene = Scene::start().await;
    let model = scene.upload(2).await;
    let fetched = scene.server.metric(FETCHED).await;
    scene.set(vec![strike(Answer::EndlessBody)]);
    scene.announce(model).await;
    scene.server.until_refused("size", 1.0).await;
    let fetched = scene.server.metric(FETCHED).await - fetched;
    assert!(fetched <= 2.0 * SIZE as f64, "{fetched} bytes taken in");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_end_of_an_unannounced_size_is_stopped_at_the_limit() {
    let scene = Scene::start().await;
    let mut model = scene.upload(2).await;
    model.as_object_mut().unwrap().retain(|field, _| field != "sha256" && field != "size");
    let server = scene.cloud.server_with(|settings| {
        settings.allow_unverified = Some(true);
        settings.max_artifact = Some(Size(2 << 20));
    });
    let server = server.await.ready().await;
    let fetched = server.metric(FETCHED).await;
    scene.set(vec![strike(Answer::EndlessBody)]);
    scene.announce(model).await;
    server.until_refused("size", 1.0).await;
    let fetched = server.metric(FETCHED).await - fetched;
    assert!(fetched <= 2.0 * f64::from(2 << 20), "{fetched} bytes taken in");
    server.stop().await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_html_in_place_of_an_artifact_is_refused_by_its_size() {
    let calls = Scene::start().await.refuses(vec![strike(Answer::Captive)], "size").await;
    assert_eq!(calls, 2, "once more, for a proxy may have said it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trickle_is_given_up_as_slow() {
    let scene = Scene::start().await;
    let (slow, good) = (scene.upload(2).await, scene.upload(3).await);
    // No pause between bytes is long: only the rate tells it from a slow line.
    scene.faults.update(|rules| rules.s3.bytes_per_second = Some(500));
    scene.announce(slow).await;
    scene.server.until_refused("slow", 1.0).await;
    assert_eq!(scene.server.model().await, "1");
    scene.faults.update(|rules| rules.s3.bytes_per_second = None);
    scene.announce(good).await;
    scene.server.until_model(3).await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_at_the_least_rate_may_take_longer_than_the_deadline() {
    let scene = Scene::start().await;
    let model = scene.upload(2).await;
    // Five seconds, with a deadline of two, and torn in the middle.
    scene.faults.update(|rules| {
        rules.s3.bytes_per_second = Some(SIZE as u64 / 5);
        rules.faults = vec![times(Answer::CutBody, 1)];
    });
    scene.announce(model).await;
    scene.server.until_model(2).await;
    assert_eq!(scene.server.refused("slow").await + scene.server.refused("unavailable").await, 0.0);
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_asks_for_less_is_asked_within_a_budget() {
    const MODELS: u64 = 12;
    let scene = Scene::patient(Duration::from_secs(5)).await;
    let mut models = vec![];
    for number in 0..MODELS {
        let model = scene.cloud.upload(&format!("m{number}"), 1, "linear", &padded_model(number, 1000)).await;
        models.push(model);
    }
    scene.set(vec![strike(Answer::Throttle)]);
    let (before, begun) = (scene.calls(), Instant::now());
    for model in models {
        scene.announce(model).await;
    }
    scene.server.until_refused("unavailable", MODELS as f64).await;
    let (calls, took) = (scene.calls() - before, begun.elapsed().as_secs_f64());
    println!("{calls} calls for {MODELS} artifacts in {took:.1} s of SlowDown");
    // Each once, a burst of twenty, and two a second: without the budget it would be seven each or so.
    assert!(calls as f64 <= MODELS as f64 + 20.0 + 2.0 * took + 1.0, "{calls} calls in {took} s");
    assert_eq!(scene.server.model().await, "1");
    scene.set(vec![]);
    scene.announce(scene.upload(3).await).await;
    scene.server.until_model(3).await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_two_slots_want_is_fetched_once() {
    let scene = Scene::start().await;
    let (mut model, before) = (scene.upload(2).await, scene.calls());
    // Slow enough that both want it at the same time.
    scene.faults.update(|rules| rules.s3.bytes_per_second = Some(SIZE as u64));
    for name in ["a", "b", "c"] {
        model["name"] = json!(name);
        scene.announce(model.clone()).await;
    }
    for name in ["a", "b", "c"] {
        until(name, async || {
            let reply = scene.server.client.post(&format!("/predict/{name}"), r#"{"instances":[[0]]}"#).await;
            (reply.status == StatusCode::OK).then_some(())
        })
        .await;
    }
    assert_eq!(scene.calls() - before, 1);
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_is_denied_is_asked_for_a_few_times_and_served_once_it_may_be() {
    let scene = Scene::start().await;
    let (model, before) = (scene.upload(2).await, scene.calls());
    scene.faults.update(|rules| rules.deny = vec![get()]);
    scene.announce(model).await;
    scene.server.until_refused("access_denied", 1.0).await;
    let calls = scene.calls() - before;
    assert!((2..=20).contains(&calls), "{calls} calls");
    assert_eq!(scene.server.model().await, "1");
    // Nobody announces it again.
    scene.faults.update(|rules| rules.deny = vec![]);
    scene.server.until_model(2).await;
    assert_eq!(scene.server.refused("access_denied").await, 1.0, "said once");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_of_an_artifact_is_stopped_while_it_is_inflated() {
    let scene = Scene::start().await;
    let zeros = padded_model(2, 64 << 20);
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let bombs = [("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(&zeros[..], 19).unwrap())];
    for (number, (encoding, bomb)) in bombs.into_iter().enumerate() {
        assert!(bomb.len() < zeros.len() / 500, "no bomb");
        let mut model = scene.cloud.upload("m", 2 + number as u64, "linear", &bomb).await;
        model["encoding"] = json!(encoding);
        scene.announce(model).await;
        scene.server.until_refused("too_large", number as f64 + 1.0).await;
    }
    assert_eq!(scene.server.model().await, "1");
    // What is compressed within reason is served.
    let packed = zstd::encode_all(&padded_model(4, 60_000)[..], 3).unwrap();
    let mut model = scene.cloud.upload("m", 4, "linear", &packed).await;
    model["encoding"] = json!("zstd");
    scene.announce(model).await;
    scene.server.until_model(4).await;
    scene.server.stop().await;
}

/// A server that answers everything with this, and counts.
async fn answering(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let router = Router::new().fallback(async move || {
        counter.fetch_add(1, Ordering::Relaxed);
        answer()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (addr, asked)
}

/// Fetches an artifact of S3 at this address, and reads it.
async fn fetch_from(s3: SocketAddr, model: &[u8]) -> Result<(), hotserve::store::Error> {
    let endpoints = Endpoints {
        kinesis: "http://127.0.0.1:1".to_owned(),
        s3: format!("http://{s3}"),
        region: "us-east-1".to_owned(),
        access_key_id: "a".to_owned(),
        secret_access_key: "b".to_owned(),
    };
    let settings = Settings {
        stream: Some("s".to_owned()),
        fetch_deadline: Some(HumanDuration(Duration::from_secs(2))),
        ..Settings::default()
    };
    let store = S3Store::new(Aws::at(endpoints).await.s3(Retries::Ours));
    let (cache, config) = (Arc::new(Cache::open(None).unwrap()), settings.validate().unwrap().store);
    let fetcher = Fetcher::new(Arc::new(store), Arc::clone(&cache), config, Metrics::new());
    let location = Location::Uri {
        uri: "s3://bucket/key".parse().unwrap(),
        version_id: None,
        sha256: Some(Digest::of(model)),
        size: Some(model.len() as u64),
    };
    let artifact = fetcher.fetch(&location).await?;
    assert_eq!(artifact.read()?, model);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_refused_with_the_region_and_nobody_else_is_asked() {
    let model = padded_model(2, 1000);
    let bytes = model.clone();
    let (other, asked_other) = answering(move || bytes.clone().into_response()).await;
    let error = |code: &str, more: &str| format!("<Error><Code>{code}</Code><Message>go</Message>{more}</Error>");
    for (status, region, body) in [
        (301, Some("eu-west-1"), error("PermanentRedirect", &format!("<Endpoint>{other}</Endpoint>"))),
        (301, Some("eu-west-1"), String::new()),
        (302, None, String::new()),
        (307, None, error("TemporaryRedirect", &format!("<Endpoint>{other}</Endpoint>"))),
        (308, None, String::new()),
        (400, Some("eu-west-1"), error("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")),
    ] {
        let answer = move || {
            let status = StatusCode::from_u16(status).unwrap();
            let mut answer = (status, body.clone()).into_response();
            answer.headers_mut().insert("location", format!("http://{other}/b/k").parse().unwrap());
            if let Some(region) = region {
                answer.headers_mut().insert("x-amz-bucket-region", region.parse().unwrap());
            }
            answer
        };
        let (here, asked) = answering(answer).await;
        let error = fetch_from(here, &model).await.unwrap_err();
        assert_eq!(error.code(), "redirect", "{status}: {error}");
        let text = error.to_string();
        assert!(text.contains("AWS_REGION") && text.contains(region.unwrap_or_default()), "{text}");
        assert!((1..=10).contains(&asked.load(Ordering::Relaxed)), "{asked:?}");
    }
    assert_eq!(asked_other.load(Ordering::Relaxed), 0);

    let calls = Scene::start().await.refuses(vec![strike(Answer::Redirect)], "redirect").await;
    assert!((1..=20).contains(&calls), "{calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_is_asked_for_by_its_range_and_the_tag_of_what_is_here() {
    const LENGTH: usize = 3000;
    let model = padded_model(2, LENGTH);
    let (asked, bytes) = (Arc::new(Mutex::new(vec![])), model.clone());
    let seen = Arc::clone(&asked);
    // A third each time.
    let router = Router::new().fallback(async move |headers: http::HeaderMap| {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let (range, tag) = (text("range"), text("if-match"));
        let from: usize =
            range.as_deref().map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        seen.lock().unwrap().push((range, tag));
        let rest = bytes.len() - from;
        let third = bytes[from..(from + 1000).min(bytes.len())].to_vec();
        let end = if third.len() < rest { vec![Err(std::io::Error::other("cut on purpose"))] } else { vec![] };
        let parts = futures_util::stream::iter([Ok(third)].into_iter().chain(end));
        // What was sent has to leave before the connection ends.
        let parts = futures_util::StreamExt::then(parts, async |part| {
            if part.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            part
        });
        let status = if from == 0 { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        let mut answer = Response::builder().status(status).header("etag", "\"one\"").header("content-length", rest);
        if from > 0 {
            answer = answer.header("content-range", format!("bytes {from}-{}/{LENGTH}", LENGTH - 1));
        }
        answer.body(axum::body::Body::from_stream(parts)).unwrap()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    fetch_from(here, &model).await.unwrap();
    let part = |from: usize| (Some(format!("bytes={from}-")), Some("\"one\"".to_owned()));
    assert_eq!(*asked.lock().unwrap(), [(None, None), part(1000), part(2000)]);
}
