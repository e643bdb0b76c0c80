// Opens /docs in a headless Chromium, pastes a token, sends one call, and tells what was seen.
//
//   node docs.mjs <address of /docs> <token> <chromium>
//
// Prints {title, status, url, body, errors, requests}: every request that the browser made, also
// the ones that its policy kept from being sent.

import { chromium } from "playwright-core";

const [address, token, executablePath] = process.argv.slice(2);
const requests = [];
const errors = [];

const browser = await chromium.launch({
  executablePath,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const context = await browser.newContext();
  context.on("request", (request) => requests.push(request.url()));
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(address);

  await page.locator("button.authorize").first().click();
  const dialog = page.locator(".dialog-ux .modal-ux");
  const form = dialog.locator(".auth-container", { hasText: /(?<!_)token\s*\(http/ });
  await form.locator("input").first().fill(token);
  await form.locator("button.authorize").click();
  await dialog.locator("button.btn-done").first().click();

  const operation = page.locator("[id$=-list_groups].opblock");
  await operation.locator(".opblock-summary-control").click();
  await operation.locator("button.try-out__btn").click();
  const client = operation.locator("tr[data-param-name=cid] input");
  await client.fill("demo");
  await operation.locator("button.execute").click();
  const live = operation.locator(".live-responses-table .response");
  const status = await live.locator(".response-col_status").first().innerText();
  const body = await live.locator(".response-col_description .highlight-code").first().innerText();
  const url = await operation.locator(".request-url pre").innerText();
  console.log(
    JSON.stringify({
      title: await page.title(),
      status: status.trim(),
      url,
      body,
      errors,
      requests,
      stored: await page.evaluate(() => JSON.stringify(localStorage)),
    }),
  );
} finally {
  await browser.close();
}
