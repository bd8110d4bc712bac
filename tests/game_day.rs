//! The endpoints of `hotserve dev` behave, and misbehave, as the real ones do: what the SDK's clients see of them.

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::primitives::ByteStream;

use crate::support::{BUCKET, Cloud};
use hotserve::aws::Retries;

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
