//! The status page: all of it is here, it is small, and it is not sent twice.

use super::*;
use crate::http::page::files;

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    server.send(request.body(Body::empty()).expect("a request")).await
}

#[tokio::test]
async fn the_status_page_needs_nothing_from_outside() {
    let server = iris();
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let html = page.text();
    assert!(!html.contains("<script>") && !html.contains("<style") && !html.contains(" style="), "{html}");
    let mut texts = vec![("/".to_owned(), html)];
    for file in files() {
        let answer = server.get(&format!("/page/{file}")).await;
        assert_eq!((answer.status, answer.header("x-content-type-options")), (200, "nosniff"), "{file}");
        texts.push((file.to_owned(), answer.text()));
    }
    for (file, text) in &texts {
        // The name of a language, and the form of a command: neither is asked.
        let text = text.replace("http://www.w3.org/2000/svg", "").replace("s3://BUCKET", "");
        assert!(!text.contains("://"), "{file} names another place");
        assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{file} makes markup of text");
    }
    // Every module and style that is named is there.
    let all: String = texts.iter().map(|(_, text)| text.as_str()).collect();
    for file in files() {
        assert!(all.contains(&format!("/{file}\"")), "{file} is not used");
    }
    server.get("/page/index.html").await.problem(404, "not_found");
    server.get("/page/%ff").await.problem(404, "not_found");
}

#[tokio::test]
async fn the_status_page_is_small_and_not_sent_twice() {
    let server = iris();
    let paths: Vec<String> = ["/".to_owned()].into_iter().chain(files().map(|file| format!("/page/{file}"))).collect();
    let mut sent = 0;
    for path in &paths {
        let plain = get(&server, path, &[]).await;
        let packed = get(&server, path, &[("accept-encoding", "gzip, br")]).await;
        assert_eq!((plain.header("content-encoding"), packed.header("content-encoding")), ("", "gzip"), "{path}");
        assert!(packed.body.len() < plain.body.len(), "{path}");
        assert_ne!(plain.header("etag"), packed.header("etag"), "{path}: they are different bytes");
        assert_eq!((packed.header("vary"), packed.header("cache-control")), ("accept-encoding", "no-cache"));
        let mut unpacked = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*packed.body), &mut unpacked).expect("gzip");
        assert_eq!(unpacked, plain.text(), "{path}");
        let again = get(&server, path, &[("accept-encoding", "gzip"), ("if-none-match", packed.header("etag"))]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        sent += packed.body.len();
    }
    assert!(sent < 60_000, "{sent} bytes are sent");
}
