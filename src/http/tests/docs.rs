//! The page that shows the interface: all of it is here.

use super::*;

#[tokio::test]
async fn the_page_of_the_interface_loads_nothing_from_elsewhere() {
    let server = iris();
    let page = server.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!page.text().contains("://") && !page.text().contains("<script>"), "{}", page.text());
    let text = page.text();
    let files: Vec<&str> = text.split(['"']).filter(|part| part.starts_with("docs/")).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        let answer = server.get(&format!("/{file}")).await;
        assert_eq!((answer.status, answer.header("x-content-type-options")), (200, "nosniff"), "{file}");
    }
    server.get("/docs/swagger-ui.js.map").await.problem(404, "not_found");
    server.get("/docs/%ff").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_packed_file_is_unpacked_for_who_cannot_and_not_sent_twice() {
    let server = iris();
    let get = async |headers: &[(&str, &str)]| {
        let request = Request::get("/docs/swagger-ui-bundle.js");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        server.send(request.body(Body::empty()).expect("a request")).await
    };
    let (plain, packed) = (get(&[]).await, get(&[("accept-encoding", "br, gzip")]).await);
    assert_eq!((plain.status, plain.header("content-encoding")), (200, ""));
    assert_eq!((packed.status, packed.header("content-encoding")), (200, "gzip"));
    assert_eq!(packed.header("content-type"), "text/javascript; charset=utf-8");
    assert!(packed.body.len() * 3 < plain.body.len(), "{} and {}", packed.body.len(), plain.body.len());
    assert!(plain.text().contains("SwaggerUIBundle"));
    assert_ne!(plain.header("etag"), packed.header("etag"), "they are different bytes");
    for answer in [&plain, &packed] {
        assert_eq!((answer.header("vary"), answer.header("cache-control")), ("accept-encoding", "no-cache"));
    }
    let again = get(&[("accept-encoding", "gzip"), ("if-none-match", packed.header("etag"))]).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
}

#[tokio::test]
async fn the_licences_of_what_is_vendored_come_with_it() {
    let server = iris();
    for (file, words) in
        [("LICENSE", "Apache License"), ("NOTICE", "SmartBear"), ("swagger-ui-bundle.js.LICENSE.txt", "MIT")]
    {
        let answer = server.get(&format!("/docs/{file}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; charset=utf-8"), "{file}");
        assert!(answer.text().contains(words), "{file}");
    }
}
