"use strict";
const described = JSON.parse(document.getElementById("document").textContent);
const main = document.getElementById("operations");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function resolved(schema) {
  return schema && schema.$ref ? described.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items || {})}`;
  const bounds = [];
  if (schema.minLength || schema.maxLength) bounds.push(`${schema.minLength || 0}-${schema.maxLength || "…"} characters`);
  if (schema.minimum !== undefined || schema.maximum !== undefined) bounds.push(`${schema.minimum ?? "…"} to ${schema.maximum ?? "…"}`);
  return [schema.type || "any", ...bounds].join(", ");
}

function members(schema) {
  const table = element("table");
  const needed = new Set(schema.required || []);
  for (const [name, member] of Object.entries(schema.properties || {})) {
    const row = table.insertRow();
    row.append(element("td", name + (needed.has(name) ? " *" : ""), "path"), element("td", kind(member)), element("td", member.description || ""));
  }
  return table;
}

function sample(schema) {
  const value = {};
  for (const name of schema.required || []) {
    const member = resolved(schema.properties[name]);
    value[name] = member.type === "array" ? [{ role: "user", content: "Hello" }] : member.type === "string" ? "Hello" : null;
  }
  return JSON.stringify(value, null, 2);
}

async function send(method, path, inputs, area, shown) {
  let target = path;
  const query = new URLSearchParams();
  for (const [parameter, input] of inputs) {
    if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value) query.set(parameter.name, input.value);
  }
  if ([...query].length) target += `?${query}`;
  const headers = {};
  const token = document.getElementById("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  if (area) headers["Content-Type"] = "application/json";
  shown.textContent = `${method} ${target}\n`;
  try {
    const answer = await fetch(target, { method, headers, body: area ? area.value : undefined });
    shown.textContent += `${answer.status} ${answer.statusText}\n\n`;
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      shown.textContent += decoder.decode(part.value, { stream: true });
    }
  } catch (failure) {
    shown.textContent += String(failure);
  }
}

function operation(method, path, about) {
  const details = element("details");
  const summary = element("summary");
  summary.append(element("span", method.toUpperCase(), "method"), element("span", path, "path"), ` ${about.summary}`);
  const inside = element("div");
  const inputs = [];
  for (const parameter of about.parameters || []) {
    const label = element("label", `${parameter.name} (${kind(parameter.schema)}) `);
    const input = element("input");
    label.append(input);
    inside.append(element("h3", parameter.in), label);
    inputs.push([parameter, input]);
  }
  let area = null;
  if (about.requestBody) {
    const schema = resolved(about.requestBody.content["application/json"].schema);
    area = element("textarea");
    area.value = sample(schema);
    area.setAttribute("aria-label", "request body");
    inside.append(element("h3", "body"), members(schema), area);
  }
  const button = element("button", "Try it");
  const shown = element("pre");
  shown.hidden = true;
  button.addEventListener("click", () => {
    shown.hidden = false;
    send(method.toUpperCase(), path, inputs, area, shown);
  });
  inside.append(button, shown, element("h3", "answers"));
  const table = element("table");
  for (const [status, answer] of Object.entries(about.responses)) {
    const row = table.insertRow();
    const content = Object.values(answer.content || {})[0];
    row.append(element("td", status), element("td", answer.description), element("td", content ? kind(content.schema) : ""));
    if (status === "200" && content) {
      const schema = resolved(content.schema.items || content.schema);
      if (schema.properties) {
        const cell = table.insertRow().insertCell();
        cell.colSpan = 3;
        cell.append(members(schema));
      }
    }
  }
  inside.append(table);
  details.append(summary, inside);
  return details;
}

main.replaceChildren();
const sections = new Map();
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const tag = about.tags[0];
    if (!sections.has(tag)) {
      const section = element("section");
      section.append(element("h2", tag));
      sections.set(tag, section);
      main.append(section);
    }
    sections.get(tag).append(operation(method, path, about));
  }
}
