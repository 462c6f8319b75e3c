// The bundled Swagger UI only takes documents that call themselves OpenAPI 3.0. What ours has of 3.1
// (null beside other types) it shows well enough.
async function show() {
  const document = await (await fetch("/openapi.json")).json();
  SwaggerUIBundle({
    spec: { ...document, openapi: "3.0.3" },
    dom_id: "#swagger-ui",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // never send the document to a foreign host
  });
}

show();
