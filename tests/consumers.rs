//! The consumers of a stream.

use hotserve::aws::FaultKind;
use hotserve::source::kinesis::consumers::{ConsumerStatus, Consumers, LIMIT, RegisterError};

use crate::support::{Cloud, STREAM, until};

#[tokio::test]
async fn a_name_that_is_taken_is_taken_over_and_a_full_stream_says_so() {
    let cloud = Cloud::start(1).await;
    let consumers = Consumers::new(&cloud.aws, STREAM);
    let first = consumers.register("hotserve-0").await.unwrap();
    assert_eq!((first.name.as_str(), first.is_ours()), ("hotserve-0", true));
    assert_eq!(consumers.register("hotserve-0").await.unwrap().arn, first.arn);
    until("the consumer to be active", async || {
        let described = consumers.describe(&first.arn).await.unwrap();
        (described.status == ConsumerStatus::Active).then_some(())
    })
    .await;
    assert_eq!(consumers.describe("hotserve-0").await.unwrap().arn, first.arn);

    for n in 1..LIMIT {
        consumers.register(&format!("hotserve-{n}")).await.unwrap();
    }
    let error = consumers.register("hotserve-one-more").await.unwrap_err();
    assert!(matches!(error, RegisterError::Full { registered: LIMIT, .. }), "{error:?}");
    assert_eq!(consumers.list().await.unwrap().len(), LIMIT);

    consumers.deregister(&first.arn).await.unwrap();
    until("the consumer to be gone", async || {
        let described = consumers.describe(&first.arn).await;
        described.is_err_and(|fault| fault.kind == FaultKind::NotFound).then_some(())
    })
    .await;
    consumers.deregister(&first.arn).await.expect("gone already is as good");
    consumers.register("hotserve-one-more").await.expect("there is a place again");
}
