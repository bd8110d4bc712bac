//! Commands: who may give them, and how they are answered. That the manager does as it is told is its own tests' part.

use super::*;
use crate::config::{AdminConfig, Token};
use crate::http::listener::ClientCertificate;

const SECRET: &str = "0123456789abcdef-secret";
const ROLLBACK: &str = r#"{"action":"rollback","model":"iris"}"#;

/// A server that takes commands, and a manager that is gone.
pub(super) fn server() -> Server {
    on(None)
}

fn on(listen: Option<SocketAddr>) -> Server {
    Server::with(vec![state("default", 96, "96")], vec![model("iris", 3, Does::Sum, CHEAP)], |config| {
        config.admin = Some(AdminConfig { token: Token::parse(SECRET).ok(), listen });
    })
}

pub(super) async fn post(
    router: &(impl tower::Service<Request<Body>, Response = Response, Error = std::convert::Infallible> + Clone),
    authorization: Option<&str>,
    body: &str,
) -> Answer {
    let mut request = Request::post("/admin/control");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    send(router, request.body(Body::from(body.to_owned())).expect("a request")).await
}

pub(super) fn bearer() -> String {
    format!("Bearer {SECRET}")
}

#[tokio::test]
async fn without_a_token_there_is_no_such_path() {
    let server = iris();
    let asked = post(&server.router, Some(&bearer()), ROLLBACK).await.problem(404, "not_found");
    assert_eq!(asked, server.get("/nope").await.problem(404, "not_found"));
}

#[tokio::test]
async fn who_has_not_the_token_is_told_how_to_present_it_and_nothing_else() {
    let server = server();
    for wrong in ["Bearer", "Bearer ", "Basic 0123456789abcdef-secret", SECRET, "Bearer x", "Bearer 0123456789abcdef"] {
        let answer = post(&server.router, Some(wrong), ROLLBACK).await;
        assert_eq!(answer.problem(401, "unauthorized"), "this is not the server's token", "{wrong}");
        assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="hotserve", error="invalid_token""#);
        assert!(!answer.text().contains(SECRET));
    }
    // A body that is no command does not get as far.
    let answer = post(&server.router, None, "{").await;
    answer.problem(401, "unauthorized");
    assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="hotserve""#);
    assert_eq!(server.metric("hotserve_http_requests_total{route=\"/admin/control\",status=\"401\"}"), 7.0);
    for good in [bearer(), format!("bearer {SECRET}"), format!("BEARER   {SECRET}")] {
        post(&server.router, Some(&good), ROLLBACK).await.problem(503, "stopping");
    }
}

#[tokio::test]
async fn what_is_no_command_is_refused_with_what_is_wrong() {
    let server = server();
    for (body, named) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "action"),
        (r#"{"action":"rollback"}"#, "names either"),
        (r#"{"action":"rollback","model":"a","key":"b"}"#, "names either"),
        (r#"{"action":"promote","model":"iris"}"#, "pin, unpin, rollback and revoke"),
        (r#"{"action":"revoke","model":"iris"}"#, "\"version\" or a \"sha256\""),
        (r#"{"action":"pin","model":"iris","version":0}"#, "from 1 to"),
        (r#"{"action":"pin","model":"../iris"}"#, "model name"),
        (r#"{"action":"rollback","model":"iris","verison":2}"#, "no field \"verison\""),
        (r#"{"action":"rollback","model":"iris","model":"b"}"#, "duplicate"),
    ] {
        let detail = post(&server.router, Some(&bearer()), body).await.problem(400, "bad_control");
        assert!(detail.contains(named), "{body}: {detail}");
    }
    let long = format!("{{\"action\":\"rollback\",\"model\":\"iris\"{}}}", " ".repeat(20_000));
    post(&server.router, Some(&bearer()), &long).await.problem(413, "body_too_large");
}

#[tokio::test]
async fn a_port_of_their_own_takes_commands_and_the_other_one_does_not() {
    let server = on(Some(([127, 0, 0, 1], 0).into()));
    post(&server.router, Some(&bearer()), ROLLBACK).await.problem(404, "not_found");
    let own = admin_router(&server.http);
    post(&own, Some(&bearer()), ROLLBACK).await.problem(503, "stopping");
    post(&own, None, ROLLBACK).await.problem(401, "unauthorized");
    for path in ["/", "/state", "/metrics", "/admin", "/admin/"] {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        send(&own, request).await.problem(404, "not_found");
    }
}

#[test]
fn every_way_to_be_denied_has_its_status() {
    use crate::manager::Denied::{Barred, Disk, NoSlot, NothingToGoBackTo, Overruled, Stopping};
    let why = || "why".to_owned();
    for (denied, status, code) in [
        (NoSlot(why()), 404, "no_slot"),
        (NothingToGoBackTo(why()), 409, "nothing_to_go_back_to"),
        (Barred(why()), 409, "barred"),
        (Overruled(why()), 409, "overruled"),
        (Disk(why()), 503, "disk"),
        (Stopping, 503, "stopping"),
    ] {
        let problem = crate::http::admin::problem(&denied);
        assert_eq!((problem.status.as_u16(), problem.code), (status, code));
        assert_eq!(problem.detail, denied.to_string());
    }
}

#[test]
fn a_command_that_is_not_done_yet_is_accepted() {
    use crate::manager::{Done, Progress};
    for (progress, status, text) in
        [(Progress::Done, 200, "done"), (Progress::Loading, 202, "loading"), (Progress::Waiting, 202, "waiting")]
    {
        let before = Some("12".to_owned());
        let done = Done { slot: "model iris".to_owned(), action: "rollback", before, serving: None, progress };
        let response = crate::http::admin::answer(done);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["cache-control"]),
            (status, &"no-store".parse::<HeaderValue>().expect("text"))
        );
        let body =
            futures_util::FutureExt::now_or_never(response.into_body().collect()).expect("there").expect("whole");
        let body: Value = serde_json::from_slice(&body.to_bytes()).expect("JSON");
        assert_eq!(
            body,
            json!({"slot": "model iris", "action": "rollback", "before": "12", "serving": null, "progress": text})
        );
    }
}

#[tokio::test]
async fn a_certificate_gives_no_commands_to_pages_from_elsewhere() {
    let server = on(None);
    let ask = async |headers: &[(&str, &str)]| {
        let mut request = Request::post("/admin/control").header("host", "ops.example:9000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(ROLLBACK)).expect("a request");
        request.extensions_mut().insert(ClientCertificate("digest".into()));
        send(&server.router, request).await
    };
    for own in [
        &[][..],
        &[("sec-fetch-site", "same-origin"), ("origin", "https://ops.example:9000")],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://ops.example:9000")],
    ] {
        ask(own).await.problem(503, "stopping");
    }
    for elsewhere in [
        &[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
    ] {
        ask(elsewhere).await.problem(401, "unauthorized");
    }
}
