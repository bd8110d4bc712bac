//! What is served, how it does, and what operators tell it: the same as over REST.

use hotserve_models::TensorSpec;
use http::{Extensions, HeaderMap, StatusCode};
use tonic::Status;

use super::named;
use super::proto::inference as pb;
use super::proto::inference::model_metadata_response::TensorMetadata;
use super::proto::inference::repository_index_response::ModelIndex;
use super::status::bad;
use crate::http::problem::Problem;
use crate::http::v2::models::{counted, find, platform, shape, versions};
use crate::http::v2::repository::{rows, tell};
use crate::http::{Http, admin};
use crate::notification::Action;
use crate::serving::ServedModel;
use crate::serving::statistics::{Counted, Total};
use crate::status::Readiness;

pub(super) fn server_ready(http: &Http, _: pb::ServerReadyRequest) -> pb::ServerReadyResponse {
    pb::ServerReadyResponse { ready: http.status.readiness() == Readiness::Ready }
}

pub(super) fn server_metadata(_: pb::ServerMetadataRequest) -> pb::ServerMetadataResponse {
    pb::ServerMetadataResponse {
        name: "hotserve".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        // Tensors as bytes are a part of this protocol, no extension.
        extensions: ["model_repository", "statistics"].map(str::to_owned).to_vec(),
    }
}

/// A model that is not there is not ready, and no error: so clients ask whether it is there yet.
pub(super) fn model_ready(http: &Http, asked: &pb::ModelReadyRequest) -> pb::ModelReadyResponse {
    let ready = find(http, &http.serving.snapshot(), &named(&asked.name, &asked.version)).is_ok();
    pb::ModelReadyResponse { ready }
}

pub(super) fn model_metadata(
    http: &Http,
    asked: &pb::ModelMetadataRequest,
) -> Result<pb::ModelMetadataResponse, Problem> {
    let snapshot = http.serving.snapshot();
    let model = find(http, &snapshot, &named(&asked.name, &asked.version))?;
    let newest = find(http, &snapshot, &named(&asked.name, ""))?;
    let signature = model.model.signature();
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.datatype.to_string(),
        shape: shape(spec),
    };
    Ok(pb::ModelMetadataResponse {
        name: model.facts.name.to_string(),
        versions: versions(&snapshot, &newest),
        platform: platform(&model),
        inputs: signature.inputs.iter().map(tensor).collect(),
        outputs: signature.outputs.iter().map(tensor).collect(),
    })
}

pub(super) fn statistics(
    http: &Http,
    asked: &pb::ModelStatisticsRequest,
) -> Result<pb::ModelStatisticsResponse, Problem> {
    let named = (!asked.name.is_empty()).then(|| named(&asked.name, &asked.version));
    let models = counted(http, &http.serving.snapshot(), named.as_ref())?;
    Ok(pb::ModelStatisticsResponse { model_stats: models.iter().map(|model| of_version(model)).collect() })
}

fn of_version(model: &ServedModel) -> pb::ModelStatistics {
    let Counted { success, fail, queue, input, infer, output, rows, last } = model.statistics.counted();
    let duration = |total: Total| Some(pb::StatisticDuration { count: total.count, ns: total.nanos });
    pb::ModelStatistics {
        name: model.facts.name.to_string(),
        version: model.facts.rank.to_string(),
        last_inference: last,
        inference_count: rows,
        execution_count: success.count,
        inference_stats: Some(pb::InferStatistics {
            success: duration(success),
            fail: duration(fail),
            queue: duration(queue),
            compute_input: duration(input),
            compute_infer: duration(infer),
            compute_output: duration(output),
            // Nothing is answered from a cache.
            cache_hit: duration(Total::default()),
            cache_miss: duration(Total::default()),
        }),
        batch_stats: vec![],
    }
}

pub(super) fn index(http: &Http, asked: &pb::RepositoryIndexRequest) -> Result<pb::RepositoryIndexResponse, Problem> {
    only_repository(&asked.repository_name)?;
    let models = rows(http, asked.ready).into_iter().map(|row| ModelIndex {
        name: row.name,
        version: row.version,
        state: row.state.to_owned(),
        reason: row.reason,
    });
    Ok(pb::RepositoryIndexResponse { models: models.collect() })
}

/// Serves the newest of a model again.
pub(super) async fn load(
    http: &Http,
    headers: &HeaderMap,
    asked: pb::RepositoryModelLoadRequest,
) -> Result<pb::RepositoryModelLoadResponse, Status> {
    let admin = operator(http, headers)?;
    only_repository(&asked.repository_name)?;
    if !asked.parameters.is_empty() {
        return Err(bad("a model is loaded as it was published: load takes no parameters").into());
    }
    tell(http, admin, &asked.model_name, Action::Load).await?;
    Ok(pb::RepositoryModelLoadResponse {})
}

/// Serves a model no more.
pub(super) async fn unload(
    http: &Http,
    headers: &HeaderMap,
    asked: pb::RepositoryModelUnloadRequest,
) -> Result<pb::RepositoryModelUnloadResponse, Status> {
    let admin = operator(http, headers)?;
    only_repository(&asked.repository_name)?;
    tell(http, admin, &asked.model_name, Action::Unload).await?;
    Ok(pb::RepositoryModelUnloadResponse {})
}

fn only_repository(name: &str) -> Result<(), Problem> {
    if name.is_empty() { Ok(()) } else { Err(bad("there is one repository, which has no name")) }
}

/// Who may tell the manager: whoever presents the token, where there is one, and where commands are taken.
fn operator<'h>(http: &'h Http, headers: &HeaderMap) -> Result<&'h admin::Admin, Problem> {
    let refused = |status, code, detail: &'static str| Err(Problem::new(status, code, detail));
    match &http.admin {
        None => refused(
            StatusCode::FORBIDDEN,
            "forbidden",
            "loading and unloading are off: start the server with --admin-token-file or HOTSERVE_ADMIN_TOKEN",
        ),
        Some(_) if !http.takes_commands() => refused(
            StatusCode::FORBIDDEN,
            "forbidden",
            "loading and unloading are taken over HTTP, at the address of --admin-listen or --ops-listen",
        ),
        // Certificates are shown at those addresses only.
        Some(admin) if admin.may(headers, &Extensions::new()) => Ok(admin),
        Some(_) => refused(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "commands need the server's token: send the metadata authorization: Bearer TOKEN",
        ),
    }
}
