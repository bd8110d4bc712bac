//! `GET /`: the status page. Its files are of this program, and it asks nobody else.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::docs::{sent, takes_gzip};
use super::problem::Problem;
use super::state::is_current;
use crate::id::Digest;

/// Scripts and styles are files of the page; none stands within it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The first is the page itself.
const FILES: &[File] = &[
    File { name: "index.html", media_type: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    File { name: "style.css", media_type: "text/css; charset=utf-8", text: include_str!("page/style.css") },
    File { name: "page.js", media_type: JAVASCRIPT, text: include_str!("page/page.js") },
    File { name: "dom.js", media_type: JAVASCRIPT, text: include_str!("page/dom.js") },
    File { name: "words.js", media_type: JAVASCRIPT, text: include_str!("page/words.js") },
    File { name: "charts.js", media_type: JAVASCRIPT, text: include_str!("page/charts.js") },
    File { name: "admin.js", media_type: JAVASCRIPT, text: include_str!("page/admin.js") },
    File { name: "try.js", media_type: JAVASCRIPT, text: include_str!("page/try.js") },
];

/// A file as it is sent.
struct Packed {
    digest: String,
    gzip: Bytes,
}

/// Packed once, when the page is first asked for.
static PACKED: LazyLock<Vec<Packed>> = LazyLock::new(|| {
    let pack = |file: &File| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        packer.write_all(file.text.as_bytes()).and_then(|()| packer.finish()).map(Bytes::from)
    };
    let packed = FILES.iter().map(|file| Packed {
        digest: Digest::of(file.text.as_bytes()).to_string(),
        gzip: pack(file).expect("memory takes what is written"),
    });
    packed.collect()
});

/// The names of the page's files, but for the page itself.
pub(super) fn files() -> impl Iterator<Item = &'static str> {
    FILES.iter().skip(1).map(|file| file.name)
}

/// The page.
pub(super) async fn page(request: HeaderMap) -> Result<Response, Problem> {
    let mut response = send(0, &request).await?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

/// A file of the page.
pub(super) async fn file(name: Result<Path<String>, PathRejection>, request: HeaderMap) -> Result<Response, Problem> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = FILES.iter().skip(1).position(|file| file.name == name);
    let place = found
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "not_found", "the page has no such file: / is the page"))?;
    send(place + 1, &request).await
}

async fn send(place: usize, request: &HeaderMap) -> Result<Response, Problem> {
    // Packing takes longer than a request may.
    let packed = tokio::task::spawn_blocking(|| PACKED.as_slice()).await.map_err(|_| Problem::internal())?;
    let (file, packed) = FILES.get(place).zip(packed.get(place)).ok_or_else(Problem::internal)?;
    let gzip = takes_gzip(request);
    let digest = packed.digest.get(..32).unwrap_or(&packed.digest);
    let etag = format!("\"{digest}{}\"", if gzip { "-gzip" } else { "" });
    let etag = HeaderValue::try_from(etag).map_err(|_| Problem::internal())?;
    let body = (!is_current(request, &etag))
        .then(|| if gzip { packed.gzip.clone() } else { Bytes::from_static(file.text.as_bytes()) }.into_response());
    Ok(sent(body, file.media_type, gzip, etag))
}
