//! Whatever lies on the wire: a status, and the next call is answered.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tonic::Code;

use super::{Client, INFER, LIMIT, rows, start};

/// Sends bytes as the body of a call, and answers its headers and trailers together.
async fn send(client: &Client, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> HeaderMap {
    let mut request = Request::builder()
        .method("POST")
        .version(Version::HTTP_2)
        .uri(format!("{}{path}", client.origin.to_string().trim_end_matches('/')));
    let with = |name| headers.iter().any(|(given, _)| *given == name);
    if !with("content-type") {
        request = request.header("content-type", "application/grpc");
    }
    request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(tonic::body::Body::new(Full::new(body.into()))).unwrap();
    let (head, body) = client.http.request(request).await.unwrap().into_parts();
    let mut all = head.headers;
    if let Some(trailers) = body.collect().await.unwrap().trailers() {
        all.extend(trailers.clone());
    }
    all.insert("http-status", head.status.as_u16().into());
    all
}

fn code(headers: &HeaderMap) -> Code {
    Code::from_bytes(headers.get("grpc-status").unwrap_or_else(|| panic!("no status: {headers:?}")).as_bytes())
}

fn frame(flag: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend(u32::try_from(length).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

fn whole(message: &[u8]) -> Vec<u8> {
    frame(0, message.len(), message)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_frames_are_refused_by_what_is_wrong_with_them() {
    let (server, _feeder, client) = start(|_| {}).await;
    let good = rows(2).encode_to_vec();
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < LIMIT);
    let compressed = |name| [("grpc-encoding", name)];
    for (headers, body, expected) in [
        (&[][..], whole(&good), Code::Ok),
        (&[], vec![], Code::InvalidArgument),
        (&[], vec![0, 0, 0], Code::InvalidArgument),
        (&[], frame(0, good.len() + 1, &good), Code::InvalidArgument),
        (&[], frame(0, good.len() - 1, &good), Code::InvalidArgument),
        (&[], [whole(&good), whole(&good)].concat(), Code::InvalidArgument),
        (&[], frame(0, u32::MAX as usize, &good), Code::ResourceExhausted),
        (&[], frame(7, good.len(), &good), Code::InvalidArgument),
        (&[], frame(1, good.len(), &good), Code::Internal),
        (&[], whole(&vec![0; LIMIT + 1]), Code::ResourceExhausted),
        // No message: an empty one, groups, and lengths that go beyond it.
        (&[], whole(b""), Code::NotFound),
        (&[], whole(&[0x0b; 64]), Code::InvalidArgument),
        (&[], whole(&[0xff; 64]), Code::InvalidArgument),
        (&[], whole(&[0x2a, 0].repeat(100_000)), Code::InvalidArgument),
        (&compressed("gzip"), whole(&good), Code::Ok),
        (&compressed("identity"), whole(&good), Code::Ok),
        (&compressed("gzip"), frame(1, gzip(&good).len(), &gzip(&good)), Code::Ok),
        (&compressed("gzip"), frame(1, good.len(), &good), Code::InvalidArgument),
        (&compressed("deflate"), frame(1, gzip(&good).len(), &gzip(&good)), Code::InvalidArgument),
        (&compressed("zstd"), whole(&good), Code::Unimplemented),
        (&compressed("gzip"), frame(1, bomb.len(), &bomb), Code::ResourceExhausted),
        (&[("grpc-timeout", "100000000S")], whole(&good), Code::InvalidArgument),
        (&[("grpc-timeout", "99999999H")], whole(&good), Code::Ok),
        (&[("x-min-version", "many")], whole(&good), Code::InvalidArgument),
        (&[("content-type", "application/grpc+proto")], whole(&good), Code::Ok),
        (&[("content-type", "application/grpc;charset=utf-8")], whole(&good), Code::Ok),
    ] {
        let begin: Vec<u8> = body.iter().copied().take(12).collect();
        let answer = send(&client, INFER, headers, body).await;
        assert_eq!(code(&answer), expected, "{headers:?} {begin:?}: {answer:?}");
        assert_eq!(answer["http-status"], "200");
        assert_eq!(answer["content-type"], "application/grpc");
        assert!(answer.contains_key("x-request-id"));
    }
    // What is no inference is small.
    let live = "/inference.GRPCInferenceService/ServerLive";
    assert_eq!(code(&send(&client, live, &[], whole(b"")).await), Code::Ok);
    assert_eq!(code(&send(&client, live, &[], whole(&vec![0; LIMIT / 2])).await), Code::ResourceExhausted);
    // Other encodings than the protocol's own are not gRPC here.
    for content_type in ["application/grpc+json", "application/grpc-web+proto", "application/grpcish", "text/plain"] {
        let answer = send(&client, INFER, &[("content-type", content_type)], whole(&good)).await;
        assert_eq!(answer["http-status"], "404", "{content_type}: {answer:?}");
    }
    // Nor is HTTP/1.1.
    let reply = server.client.ask(INFER, &[("content-type", "application/grpc")], Some("")).await;
    assert_eq!(reply.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_torn_and_twisted_messages_cost_nothing_but_themselves() {
    let (server, _feeder, client) = start(|_| {}).await;
    let good = rows(3).encode_to_vec();
    let mut random = fastrand::Rng::with_seed(7);
    let mut answered = 0;
    for number in 0..1000 {
        let mut message = good.clone();
        match number % 4 {
            0 => message.truncate(random.usize(..message.len())),
            1 => {
                for _ in 0..=random.usize(..4) {
                    let at = random.usize(..message.len());
                    message[at] = random.u8(..);
                }
            }
            2 => {
                let at = random.usize(..message.len());
                message.splice(at..at, (0..random.usize(1..32)).map(|_| random.u8(..)).collect::<Vec<_>>());
            }
            _ => message = (0..random.usize(1..256)).map(|_| random.u8(..)).collect(),
        }
        let answer = send(&client, INFER, &[], whole(&message)).await;
        match code(&answer) {
            Code::Ok => answered += 1,
            Code::InvalidArgument | Code::NotFound | Code::Unimplemented => {}
            other => panic!("{other:?} for {message:?}: {answer:?}"),
        }
    }
    assert!(answered < 500, "{answered} of 1,000 were no harm at all");
    assert!(client.infer(rows(3)).await.is_ok());
    server.stop().await;
}
