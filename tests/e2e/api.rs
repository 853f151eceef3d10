//! The REST API: what the commands over ssh do, by HTTP.

use std::time::Duration;

use reqwest::{Method, blocking::Client};
use serde_json::{Value, json};

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually},
    repository::Repository,
};

pub const CASES: &[Case] = &[("an_app_is_made_and_operated_over_the_api", an_app_is_made_and_operated_over_the_api)];

/// A client with a token.
struct Api {
    base: String,
    client: Client,
    token: String,
}

impl Api {
    fn of(platform: &Platform, user: &User) -> Self {
        let made = platform.ssh(user, &["tokens", "create", "test", "--scope", "full", "--json"]).ok().json();
        let client = Client::builder().timeout(Duration::from_secs(65)).no_proxy().build().unwrap();
        let base = format!("http://127.0.0.1:{}", platform.api_port);
        Self { base, client, token: made["token"].as_str().unwrap().to_owned() }
    }

    /// Status, and body.
    fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.send().unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().unwrap();
        // `run` answers in lines; the last tells how it ended.
        let last = text.lines().last().unwrap_or_default();
        (status, serde_json::from_str(&text).or_else(|_| serde_json::from_str(last)).unwrap_or(Value::Null))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value, wanted: u16) -> Value {
        let (status, body) = self.ask(Method::POST, path, Some(body));
        assert_eq!(status, wanted, "{path}: {body}");
        body
    }

    /// Follows a deployment to its end.
    fn deployed(&self, env: &str, begun: &Value) -> Value {
        eventually("the deployment has ended", DEADLINE, || {
            let deployment = self.get(&format!("{env}/deployments/{}", begun["deployment"]));
            (deployment["state"] != "running").then_some(deployment)
        })
    }
}

fn an_app_is_made_and_operated_over_the_api(platform: &Platform) {
    let (tenant, user) = platform.new_tenant();
    let api = Api::of(platform, &user);
    assert_eq!(api.get("/v1/whoami")["tenants"][&tenant], "owner");
    let app = format!("{tenant}/app");
    api.post("/v1/apps", json!({"name": app}), 201);
    let env = format!("/v1/envs/{app}/dev");
    assert_eq!(api.get(&env)["release"], Value::Null);

    let repository = Repository::of_fixture(platform, &user, &app, "buildpacks/fixtures/static-plain");
    repository.push().ok();
    let host = format!("dev.app.{tenant}.localhost");
    assert_eq!(platform.get(&host, "/").0, 200);
    assert_eq!(api.get(&format!("{env}/builds"))["items"][0]["state"], "succeeded");

    let (status, scaled) = api.ask(Method::PATCH, &format!("{env}/scale"), Some(json!({"web": 2})));
    assert_eq!((status, &scaled["scale"]["web"]), (202, &json!(2)));
    eventually("two replicas are ready", DEADLINE, || (api.get(&env)["processes"]["web"]["ready"] == 2).then_some(()));

    let (status, changed) = api.ask(Method::PATCH, &format!("{env}/config"), Some(json!({"GREETING": "hello"})));
    assert_eq!(status, 202, "{changed}");
    assert_eq!(api.deployed(&env, &changed)["state"], "succeeded");
    assert_eq!(platform.ssh(&user, &["config", "get", &format!("{app}/dev"), "GREETING"]).ok().stdout.trim(), "hello");
    let ran = api.post(&format!("{env}/runs"), json!({"command": ["sh", "-c", "test \"$GREETING\" = hello"]}), 200);
    assert_eq!(ran, json!({"exit_status": 0}));

    let begun = api.post(&format!("{env}/rollback"), json!({}), 202);
    assert_eq!(api.deployed(&env, &begun)["state"], "succeeded");
    assert_eq!(platform.get(&host, "/").0, 200);
    let queued = api.post(&format!("{env}/redeploy"), json!({}), 202);
    eventually("the build has ended", DEADLINE, || {
        let build = api.get(&format!("{env}/builds/{}", queued["build"]));
        assert!(build["state"] != "failed", "{build}");
        (build["state"] == "succeeded").then_some(())
    });
    let (status, _) = api.ask(Method::DELETE, &format!("/v1/apps/{app}"), None);
    assert_eq!(status, 200);
    assert_eq!(api.ask(Method::GET, &env, None).0, 404);
}
