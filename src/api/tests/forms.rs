//! What answers look like: pages of lists, their ids, and the document that describes them.

use axum::http::Method;

use super::*;
use crate::domain::Environment;

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    for number in 0..5 {
        server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": format!("acme/app{number}")}))).await.is(201);
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.ask(&olga, "GET", &format!("/v1/apps?limit=2{cursor}"), None).await.is(200).body;
        names.extend(page["items"].as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(names, ["acme/app0", "acme/app1", "acme/app2", "acme/app3", "acme/app4", "acme/shop"]);
    server.ask(&olga, "GET", "/v1/apps?limit=0", None).await.is(400);
    server.ask(&olga, "GET", "/v1/apps?cursor=x", None).await.is(400);
}

impl Server {
    /// What a list names, page by page; each but the last is full.
    async fn names(&self, token: &str, path: &str, limit: usize, field: &str) -> Vec<String> {
        let (mut names, mut cursor) = (Vec::new(), String::new());
        let begins = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = self.ask(token, "GET", &format!("{path}{begins}limit={limit}{cursor}"), None).await.is(200).body;
            let items = page["items"].as_array().unwrap();
            names.extend(items.iter().map(|item| item[field].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { return names };
            assert_eq!(items.len(), limit, "{page}");
            cursor = format!("&cursor={next}");
        }
    }
}

#[tokio::test]
async fn environments_come_in_pages_whatever_is_made_or_removed_meanwhile() {
    let server = Server::new().await;
    let (olga, stan) = (server.token("olga").await, server.token("stan").await);
    for app in ["acme/shop-2", "acme/a"] {
        server.ask(&olga, "POST", "/v1/apps", Some(json!({"name": app}))).await.is(201);
    }
    for env in ["acme/shop/b", "acme/shop/c", "acme/shop/a"] {
        server.ask(&olga, "POST", "/v1/envs", Some(json!({"name": env}))).await.is(201);
    }
    for (path, field) in [("/v1/envs", "name"), ("/v1/running", "env")] {
        let names = |page: &Value| -> Vec<String> {
            page["items"].as_array().unwrap().iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
        };
        let all = names(&server.ask(&olga, "GET", path, None).await.is(200).body);
        assert!(all.len() >= 4 && all.contains(&"acme/shop/dev".to_owned()), "{all:?}");
        assert_eq!(server.names(&olga, path, 2, field).await, all, "{path}");
        let others = names(&server.ask(&stan, "GET", path, None).await.is(200).body);
        assert!(others.iter().all(|name| !name.starts_with("acme/")), "{others:?}");
        server.ask(&olga, "GET", &format!("{path}?limit=0"), None).await.is(400);
        server.ask(&olga, "GET", &format!("{path}?cursor=x"), None).await.is(400);
    }
    // Over several tenants, in the order of the store's keys, in which `acme-2/` comes before `acme/`.
    let (opal, store) = (server.token("opal").await, &server.world.store);
    server.ask(&opal, "POST", "/v1/tenants", Some(json!({"name": "acme-2"}))).await.is(201);
    server.ask(&opal, "POST", "/v1/apps", Some(json!({"name": "acme-2/shop"}))).await.is(201);
    server.ask(&opal, "POST", "/v1/envs", Some(json!({"name": "acme-2/shop/x"}))).await.is(201);
    let keys: Vec<_> = store.list::<Environment>("").await.unwrap().iter().map(|env| env.name.to_string()).collect();
    assert!(keys.windows(2).any(|two| two[0].starts_with("acme-2/") && two[1].starts_with("acme/")), "{keys:?}");
    for limit in 1..=keys.len() {
        assert_eq!(server.names(&opal, "/v1/envs", limit, "name").await, keys, "{limit} at a time");
    }
    // What is destroyed while the others are asked how they are hides nothing.
    *server.world.deployer.gone.lock().unwrap() = Some(keys[1].parse().unwrap());
    for path in ["/v1/running", "/v1/running?why=true"] {
        assert_eq!(server.names(&opal, path, 1, "env").await, keys);
    }
    // What the cursor stands for is gone; the list goes on behind it.
    let first = server.ask(&olga, "GET", "/v1/envs?app=acme/shop&limit=1", None).await.is(200).body;
    assert_eq!(first["items"][0]["name"], "acme/shop/a");
    let gone = store.need::<Environment>(&"acme/shop/a".parse().unwrap()).await.unwrap();
    store.transaction().delete(&gone).commit().await.unwrap();
    let path = format!("/v1/envs?app=acme/shop&cursor={}", first["next"].as_str().unwrap());
    let rest = server.ask(&olga, "GET", &path, None).await.is(200).body;
    assert_eq!((&rest["items"][0]["name"], &rest["items"][1]["name"]), (&json!("acme/shop/b"), &json!("acme/shop/c")));
}

#[tokio::test]
async fn answers_bear_an_id_and_are_kept_by_nobody() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let own = server.ask_with(&olga, "GET", "/v1/whoami", None, &[("x-request-id", "mine-1")]).await.is(200);
    assert_eq!(
        (&own.headers["x-request-id"], &own.headers["cache-control"]),
        (&"mine-1".parse().unwrap(), &"no-store".parse().unwrap())
    );
    for id in ["a b\"<", ""] {
        let given = server.ask_with(&olga, "GET", "/v1/nothing", None, &[("x-request-id", id)]).await.is(404);
        assert_eq!(given.headers["x-request-id"].len(), 32);
    }
}

#[tokio::test]
async fn the_document_and_its_pages_are_served() {
    let server = Server::new().await;
    let document = server.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await.is(200).body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut ids = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let Ok(_) = method.to_uppercase().parse::<Method>() else { continue };
            ids.push(operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}")).to_owned());
            assert!(operation["responses"]["401"].is_object() && operation["summary"].is_string(), "{method} {path}");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                assert!(answer["description"].is_string(), "{method} {path} does not say what {status} is");
            }
        }
    }
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document["components"]["schemas"][reference].is_object(), "{reference} is not described");
    }
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Page_Build"]["properties"]["items"]["items"]["$ref"], "#/components/schemas/Build");
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "operation ids are told apart: {ids:?}");
    for (path, kind) in [("/docs/", "text/html"), ("/docs/swagger-ui.css", "text/css")] {
        let response = server.router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert!(response.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with(kind));
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    }
}
