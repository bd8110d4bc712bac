//! `GET /docs`: the page that shows `/openapi.json`, with a form to try each operation.
//!
//! Swagger UI, vendored by `scripts/vendor-docs`: everything comes from this program, and the page asks nobody else.

use std::io::Read as _;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::problem::Problem;
use super::state::is_current;
use crate::id::Digest;

/// The page's scripts and styles are files of ours. Swagger UI writes styles into its elements.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    name: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
    /// The bytes are gzip: browsers take them as they are.
    packed: bool,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

const FILES: &[File] = &[
    File {
        name: "swagger-ui-bundle.js",
        media_type: JAVASCRIPT,
        bytes: include_bytes!("docs/swagger-ui-bundle.js.gz"),
        packed: true,
    },
    File { name: "swagger-ui.css", media_type: CSS, bytes: include_bytes!("docs/swagger-ui.css.gz"), packed: true },
    File { name: "page.js", media_type: JAVASCRIPT, bytes: include_bytes!("docs/page.js"), packed: false },
    File { name: "page.css", media_type: CSS, bytes: include_bytes!("docs/page.css"), packed: false },
    // Who gets the program gets the licences.
    File { name: "LICENSE", media_type: TEXT, bytes: include_bytes!("docs/LICENSE"), packed: false },
    File { name: "NOTICE", media_type: TEXT, bytes: include_bytes!("docs/NOTICE"), packed: false },
    File {
        name: "swagger-ui-bundle.js.LICENSE.txt",
        media_type: TEXT,
        bytes: include_bytes!("docs/swagger-ui-bundle.js.LICENSE.txt"),
        packed: false,
    },
];

/// The digests of the files, in their order: what a browser has already is not sent again.
static DIGESTS: LazyLock<Vec<String>> =
    LazyLock::new(|| FILES.iter().map(|file| Digest::of(file.bytes).to_string()).collect());

/// The names of the page's files.
pub(super) fn files() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.name)
}

/// The page.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("docs/index.html")).into_response()
}

/// A file of the page.
pub(super) async fn file(name: Result<Path<String>, PathRejection>, request: HeaderMap) -> Result<Response, Problem> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = FILES.iter().zip(DIGESTS.iter()).find(|(file, _)| file.name == name);
    let Some((file, digest)) = found else {
        let detail = "the page has no such file: /docs is the page";
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", detail));
    };
    let as_it_is = file.packed && takes_gzip(&request);
    let etag = format!("\"{}{}\"", digest.get(..32).unwrap_or(digest), if as_it_is { "-gzip" } else { "" });
    let etag = HeaderValue::try_from(etag).map_err(|_| Problem::internal())?;
    let body = if is_current(&request, &etag) {
        None
    } else if file.packed && !as_it_is {
        let unpacked = tokio::task::spawn_blocking(|| {
            let mut bytes = Vec::new();
            GzDecoder::new(file.bytes).read_to_end(&mut bytes).map(|_| bytes)
        });
        Some(unpacked.await.ok().and_then(Result::ok).ok_or_else(Problem::internal)?.into_response())
    } else {
        Some(file.bytes.into_response())
    };
    Ok(sent(body, file.media_type, as_it_is, etag))
}

/// A file of a page: its body, or none for who has it already.
pub(super) fn sent(body: Option<Response>, media_type: &'static str, gzip: bool, etag: HeaderValue) -> Response {
    let mut response = match body {
        None => StatusCode::NOT_MODIFIED.into_response(),
        Some(mut response) => {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            if gzip {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whether the client takes gzip: it says so, and not with a weight of 0.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f64>);
        named && weight.is_ok_and(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_taken_where_it_is_named_with_a_weight() {
        for (value, takes) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("deflate,gzip ; q=1", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("gzip;q=x", false),
            ("br", false),
            ("x-gzip-not", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(takes_gzip(&headers), takes, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
