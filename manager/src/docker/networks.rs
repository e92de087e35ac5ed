//! The end points below `/networks`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{Method, StatusCode};
use orlop_proto::contract::time::rfc3339_nano;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Engine;
use super::failure::{Failure, Result};
use super::filters::Filters;
use super::message::{Reply, Request, empty, json, no_content, ok};
use super::route::page_not_found;
use crate::network::Definition;
use crate::network::held::Held;
use crate::network::ipam::Wanted;
use crate::network::record::{Network, PREDEFINED};

/// Filters of the list.
const LIST_FILTERS: [&str; 7] = ["driver", "id", "label", "name", "scope", "type", "dangling"];
/// Filters of prune.
const PRUNE_FILTERS: [&str; 3] = ["label", "label!", "until"];

/// The body of `POST /networks/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: String,
    driver: String,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    config_from: ConfigFrom,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    network: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    driver: String,
    config: Vec<IpamConfig>,
    options: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: String,
    #[serde(rename = "IPRange")]
    range: String,
    gateway: String,
    #[serde(rename = "AuxiliaryAddresses", alias = "AuxAddress")]
    reserved: BTreeMap<String, String>,
}

/// The body of `connect` and `disconnect`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectBody {
    container: String,
    #[serde(rename = "EndpointConfig")]
    endpoint_config: Value,
    force: bool,
}

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let path = request.path.clone();
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    match (&request.method, &segments[1..]) {
        (&Method::GET, []) => list(&engine, &request).await,
        (&Method::POST, ["create"]) => create(&engine, request).await,
        (&Method::POST, ["prune"]) => prune(&engine, &request).await,
        (&Method::GET, [id]) => inspect(&engine, &request, id).await,
        (&Method::DELETE, [id]) => remove(&engine, id).await,
        (&Method::POST, [id, "connect"]) => connect(&engine, request, id).await,
        (&Method::POST, [id, "disconnect"]) => disconnect(&engine, request, id).await,
        _ => Err(page_not_found()),
    }
}

fn tell(engine: &Engine, network: &Network, action: &str, container: Option<&str>) {
    let mut attributes = BTreeMap::from([
        ("name".to_owned(), network.name.clone()),
        ("type".to_owned(), network.driver.clone()),
    ]);
    if let Some(container) = container {
        attributes.insert("container".to_owned(), container.to_owned());
    }
    engine.events.tell("network", action, &network.id, attributes);
}

fn text(map: &BTreeMap<String, String>) -> Value {
    json!(map)
}

/// A network as the API shows it.
fn shown(network: &Network, containers: Option<Map<String, Value>>) -> Value {
    let config: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| {
            let mut one = Map::new();
            one.insert("Subnet".to_owned(), json!(subnet.subnet));
            for (name, value) in [("IPRange", &subnet.range), ("Gateway", &subnet.gateway)] {
                if !value.is_empty() {
                    one.insert(name.to_owned(), json!(value));
                }
            }
            if !subnet.reserved.is_empty() {
                one.insert("AuxiliaryAddresses".to_owned(), text(&subnet.reserved));
            }
            Value::Object(one)
        })
        .collect();
    let is_own = !PREDEFINED.contains(&network.name.as_str());
    let options = if is_own { text(&network.ipam_options) } else { Value::Null };
    let created = std::time::SystemTime::try_from(network.created_at).unwrap_or(std::time::UNIX_EPOCH);
    let mut document = json!({
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339_nano(created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": true,
        "EnableIPv6": network.enable_ipv6,
        "IPAM": { "Driver": "default", "Options": options, "Config": config },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": network.options,
        "Labels": network.labels,
    });
    if let Some(containers) = containers {
        document["Containers"] = Value::Object(containers);
    }
    document
}

fn with_prefix(address: Option<(IpAddr, u8)>) -> String {
    address.map_or(String::new(), |(address, length)| format!("{address}/{length}"))
}

/// A hardware address as people write it.
pub fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn containers_on(engine: &Engine, network: &Network) -> Map<String, Value> {
    let held = engine.networks.held();
    let on = |held: &Held| held.endpoints.iter().find(|one| one.network == network.id).cloned();
    let all = held.iter().filter_map(|(id, held)| Some((id, held, on(held)?)));
    all.map(|(id, held, endpoint)| {
        let document = json!({
            "Name": held.name,
            "EndpointID": endpoint.id,
            "MacAddress": mac(endpoint.mac),
            "IPv4Address": with_prefix(endpoint.ipv4),
            "IPv6Address": with_prefix(endpoint.ipv6),
        });
        (id.clone(), document)
    })
    .collect()
}

async fn list(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &LIST_FILTERS)?;
    let dangling = filters.flag("dangling")?;
    for kind in filters.values("type") {
        if !["custom", "builtin"].contains(&kind.as_str()) {
            return Err(Failure::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let is_chosen = |network: &&Network| {
        let is_own = !PREDEFINED.contains(&network.name.as_str());
        filters.accepts("driver", |wanted| wanted == network.driver)
            && filters.accepts("id", |wanted| network.id.contains(wanted))
            && filters.accepts("name", |wanted| network.name.contains(wanted))
            && filters.accepts("scope", |wanted| wanted == "local")
            && filters.accepts("type", |wanted| (wanted == "custom") == is_own)
            && filters.accepts_labels("label", &network.labels)
            && dangling
                .is_none_or(|dangling| dangling == (is_own && !engine.networks.has_endpoints(&network.id)))
    };
    let all = engine.networks.list().await?;
    let shown: Vec<Value> = all.iter().filter(is_chosen).map(|network| shown(network, None)).collect();
    Ok(ok(&shown))
}

async fn inspect(engine: &Engine, request: &Request, id: &str) -> Result<Reply> {
    if request.query.filled("scope").is_some_and(|scope| scope != "local") {
        return Err(Failure::not_found(format!("network {id} not found")));
    }
    let network = engine.networks.find(id).await?;
    let containers = containers_on(engine, &network);
    Ok(ok(&shown(&network, Some(containers))))
}

async fn create(engine: &Engine, request: Request) -> Result<Reply> {
    let body: CreateBody = request.json().await?;
    if body.ingress || body.config_only || !body.config_from.network.is_empty() || body.driver == "overlay" {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ));
    }
    let wanted = body.ipam.config.into_iter().map(|config| Wanted {
        subnet: config.subnet,
        range: config.range,
        gateway: config.gateway,
        reserved: config.reserved.into_iter().collect(),
    });
    let definition = Definition {
        name: body.name,
        driver: body.driver,
        internal: body.internal,
        enable_ipv6: body.enable_ipv6,
        attachable: body.attachable,
        options: body.options,
        labels: body.labels,
        wanted: wanted.collect(),
        ipam_driver: body.ipam.driver,
        ipam_options: body.ipam.options,
    };
    let network = engine.networks.create(definition).await?;
    tell(engine, &network, "create", None);
    Ok(json(StatusCode::CREATED, &json!({ "Id": network.id, "Warning": "" })))
}

async fn remove(engine: &Engine, id: &str) -> Result<Reply> {
    let network = engine.networks.remove(id).await?;
    tell(engine, &network, "destroy", None);
    Ok(no_content())
}

async fn prune(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &PRUNE_FILTERS)?;
    let until = filters.until()?;
    let mut removed = Vec::new();
    for network in engine.networks.list().await? {
        let created = std::time::SystemTime::try_from(network.created_at).unwrap_or(std::time::UNIX_EPOCH);
        let is_chosen = !PREDEFINED.contains(&network.name.as_str())
            && !engine.networks.has_endpoints(&network.id)
            && until.is_none_or(|until| created < until)
            && filters.accepts_labels("label", &network.labels)
            && filters.refuses_no_label("label!", &network.labels);
        if is_chosen && engine.networks.remove(&network.id).await.is_ok() {
            tell(engine, &network, "destroy", None);
            removed.push(network.name);
        }
    }
    let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
    Ok(ok(&json!({ "NetworksDeleted": removed })))
}

async fn connect(engine: &Engine, request: Request, id: &str) -> Result<Reply> {
    let body: ConnectBody = request.json().await?;
    let container = engine.containers.get(&body.container)?;
    let name = container.with(|record| record.name.clone());
    let wish = super::container::wish(id, &body.endpoint_config)?;
    let network = engine.networks.connect(&container.id, &name, wish).await?;
    tell(engine, &network, "connect", Some(&container.id));
    Ok(empty(StatusCode::OK))
}

async fn disconnect(engine: &Engine, request: Request, id: &str) -> Result<Reply> {
    let body: ConnectBody = request.json().await?;
    let container = match engine.containers.get(&body.container) {
        Ok(container) => container.id.clone(),
        // Of a container that is gone there is nothing that could be taken off a network.
        Err(_) if body.force => return Ok(empty(StatusCode::OK)),
        Err(failure) => return Err(failure),
    };
    let network = engine.networks.disconnect(&container, id).await?;
    tell(engine, &network, "disconnect", Some(&container));
    Ok(empty(StatusCode::OK))
}
