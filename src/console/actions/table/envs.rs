//! Actions on what runs in an environment.

use axum::http::Method;

use super::*;

pub(super) fn actions() -> Vec<Action> {
    [running(), deploying(), ending()].into_iter().flatten().collect()
}

/// How much runs, and which release.
fn running() -> Vec<Action> {
    vec![
        action(
            "scale",
            (Method::PATCH, "/v1/envs/{tenant}/{app}/{env}/scale"),
            Body::Counts,
            ("Scale", "Scale", "The new scale is being reached."),
            vec![],
            Needs::Operate,
            ENV,
        ),
        action(
            "scale-reset",
            (Method::DELETE, "/v1/envs/{tenant}/{app}/{env}/scale"),
            Body::None,
            ("Back to what the manifest says", "Back to the manifest's numbers", "The manifest's numbers hold."),
            vec![],
            Needs::Operate,
            ENV,
        ),
        action(
            "restart",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/restart"),
            Body::None,
            ("Restart", "Restart", "All replicas are being replaced, one after another."),
            vec![],
            Needs::Operate,
            ENV,
        ),
        action(
            "rollback",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/rollback"),
            Body::Fields,
            ("Roll back", "Roll back", "Going back: a new release like the earlier one is being deployed."),
            vec![field("version", "To release", Kind::Number, false, "The one before, if empty")],
            Needs::Operate,
            ENV,
        ),
    ]
}

/// What is built and deployed.
fn deploying() -> Vec<Action> {
    vec![
        action(
            "redeploy",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/redeploy"),
            Body::Fields,
            ("Build and deploy the last commit again", "Redeploy", "The build is queued."),
            vec![field("no_cache", "Build from nothing", Kind::Check, false, "")],
            Needs::Operate,
            BUILD,
        ),
        action(
            "promote",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/promote"),
            Body::Fields,
            ("Run here what runs in another environment", "Promote", "The promotion is queued."),
            vec![field("from", "From environment", Kind::Text, true, "TENANT/APP/ENV of the same app")],
            Needs::Operate,
            BUILD,
        ),
        action(
            "deploy-image",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/deployments"),
            Body::Image,
            ("Deploy an image by its digest", "Deploy image", "The image is being deployed."),
            vec![
                field("image", "Image", Kind::Text, true, "berth/TENANT/APP@sha256:…, as a release's page shows it"),
                field(
                    "processes",
                    "Processes",
                    Kind::Area,
                    false,
                    "As in berth.yaml; what the newest release of it ran, if empty",
                ),
            ],
            Needs::Push,
            ENV,
        ),
        action(
            "build-upload",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/builds"),
            Body::None,
            ("Build and deploy a source without git", "Upload and build", "The build is queued."),
            vec![
                field("message", "What it is", Kind::Text, false, "For the list of releases"),
                field("no_cache", "Build from nothing", Kind::Check, false, ""),
                field("source", "Source", Kind::File, true, "A tar or tar.gz of what would be pushed"),
            ],
            Needs::Push,
            BUILD,
        ),
    ]
}

/// What is given up or goes.
fn ending() -> Vec<Action> {
    vec![
        action(
            "build-cancel",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/builds/{id}/cancel"),
            Body::None,
            ("Cancel a build", "Cancel build", "The build is being cancelled."),
            vec![],
            Needs::Push,
            Then::To("/envs/{tenant}/{app}/{env}/builds/{id}"),
        ),
        action(
            "deployment-cancel",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/deployments/{id}/cancel"),
            Body::None,
            ("Give a deployment up", "Give up", "What served before goes on serving."),
            vec![],
            Needs::Operate,
            ENV,
        ),
        confirmed(
            action(
                "env-destroy",
                (Method::DELETE, "/v1/envs/{tenant}/{app}/{env}"),
                Body::None,
                ("Destroy the environment", "Destroy", "The environment is being destroyed."),
                vec![],
                Needs::Own,
                Then::To("/apps/{tenant}/{app}"),
            ),
            "Everything in it stops at once; its repository, releases, config and logs go. This cannot be undone.",
            &["tenant", "app", "env"],
        ),
    ]
}
