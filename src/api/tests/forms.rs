//! What answers look like: pages of lists, their ids, and the document that describes them.

use axum::http::Method;

use super::*;

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

#[tokio::test]
async fn answers_bear_an_id_and_are_kept_by_nobody() {
    let server = Server::new().await;
    let olga = server.token("olga").await;
    let own = server.ask_with(&olga, "GET", "/v1/whoami", None, &[("x-request-id", "mine-1")]).await.is(200);
    assert_eq!(
        (&own.headers["x-request-id"], &own.headers["cache-control"]),
        (&"mine-1".parse().unwrap(), &"no-store".parse().unwrap())
    );
    let given = server.ask_with(&olga, "GET", "/v1/nothing", None, &[("x-request-id", "a b\"<")]).await.is(404);
    assert_eq!(given.headers["x-request-id"].len(), 32);
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
