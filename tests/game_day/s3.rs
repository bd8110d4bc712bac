//! Conditional requests of S3, and what goes wrong with it.

use std::time::Instant;

use aws_sdk_s3::primitives::ByteStream;
use hotserve::embedded::faults::{Answer, Fault};

use super::*;
use crate::support::BUCKET;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_with_a_condition_is_answered_as_s3_does() {
    let cloud = Cloud::start(1).await;
    let s3 = cloud.aws.s3(Retries::Ours);
    let put = s3.put_object().bucket(BUCKET).key("manifest").body(ByteStream::from_static(b"1")).send().await.unwrap();
    let etag = put.e_tag().unwrap();
    let get = || s3.get_object().bucket(BUCKET).key("manifest");

    let unchanged = get().if_none_match(etag).send().await.unwrap_err();
    assert_eq!(unchanged.raw_response().unwrap().status().as_u16(), 304, "{unchanged:?}");
    let changed = get().if_none_match("\"other\"").send().await.unwrap();
    assert_eq!(changed.body.collect().await.unwrap().into_bytes(), "1");
    get().if_match(etag).send().await.unwrap();
    let other = get().if_match("\"other\"").send().await.unwrap_err();
    assert_eq!(other.code(), Some("PreconditionFailed"), "{other:?}");
    assert_eq!(other.raw_response().unwrap().status().as_u16(), 412);
    let missing = s3.get_object().bucket(BUCKET).key("none").if_none_match(etag).send().await.unwrap_err();
    assert_eq!(missing.code(), Some("NoSuchKey"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_with_one_condition_one_wins() {
    let cloud = Cloud::start(1).await;
    let s3 = cloud.aws.s3(Retries::Ours);
    let put = |text: String| s3.put_object().bucket(BUCKET).key("m").body(ByteStream::from(text.into_bytes()));

    let created =
        futures_util::future::join_all((0..8).map(|n| put(format!("new {n}")).if_none_match("*").send())).await;
    assert_eq!(created.iter().filter(|result| result.is_ok()).count(), 1, "{created:?}");
    let etag = created.into_iter().find_map(Result::ok).unwrap().e_tag.unwrap();

    let swapped = futures_util::future::join_all((0..8).map(|n| put(format!("next {n}")).if_match(&etag).send())).await;
    assert_eq!(swapped.iter().filter(|result| result.is_ok()).count(), 1, "{swapped:?}");
    for lost in swapped.into_iter().filter_map(Result::err) {
        assert_eq!(lost.code(), Some("PreconditionFailed"), "{lost:?}");
        assert_eq!(lost.raw_response().unwrap().status().as_u16(), 412);
    }
    s3.delete_object().bucket(BUCKET).key("m").send().await.unwrap();
    let gone = put("late".to_owned()).if_match(&etag).send().await.unwrap_err();
    assert_eq!(gone.code(), Some("NoSuchKey"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_answer_of_s3_is_what_a_client_sees() {
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    let s3 = cloud.aws.s3(Retries::Ours);
    let body = vec![7; 100_000];
    s3.put_object().bucket(BUCKET).key("k").body(ByteStream::from(body.clone())).send().await.unwrap();
    let get = || s3.get_object().bucket(BUCKET).key("k").send();
    let strike = |answer: Answer| faults.update(|rules| rules.faults = vec![Fault::on(action("s3:GetObject"), answer)]);
    for (answer, status, expected) in [
        (Answer::InternalFailure, 500, "InternalError"),
        (Answer::Throttle, 503, "SlowDown"),
        (Answer::AccessDenied, 403, "AccessDenied"),
        (Answer::NotFound, 404, "NoSuchKey"),
        (Answer::Html, 502, "none"),
    ] {
        strike(answer);
        let error = get().await.unwrap_err();
        let seen = (error.code().unwrap_or("none"), error.raw_response().unwrap().status().as_u16());
        assert_eq!(seen, (expected, status), "{error:?}");
    }
    strike(Answer::CutBody);
    let cut = get().await.unwrap();
    assert_eq!(cut.content_length(), Some(100_000));
    assert!(cut.body.collect().await.is_err());
    strike(Answer::HangBody);
    let hung = get().await.unwrap().body.collect();
    assert!(tokio::time::timeout(Duration::from_millis(300), hung).await.is_err());
    strike(Answer::Hang);
    assert!(tokio::time::timeout(Duration::from_millis(300), get()).await.is_err());

    faults.update(|rules| {
        rules.faults.clear();
        rules.s3.bytes_per_second = Some(200_000);
    });
    let started = Instant::now();
    assert_eq!(get().await.unwrap().body.collect().await.unwrap().to_vec(), body);
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_can_appear_late() {
    let faults = faults("[s3]\nappears-after = '300ms'");
    let cloud = Cloud::faulty(1, &faults).await;
    let s3 = cloud.aws.s3(Retries::Ours);
    let get = || s3.get_object().bucket(BUCKET).key("k").send();
    s3.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(b"1")).send().await.unwrap();
    assert_eq!(get().await.unwrap_err().code(), Some("NoSuchKey"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    get().await.unwrap();
}
