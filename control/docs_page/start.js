// Shows the description. In a file of its own: the page's Content-Security-Policy allows no script inside it.
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  // Nothing is sent to a validator on the internet, and no other description can be named in the page's address.
  validatorUrl: null,
  queryConfigEnabled: false,
});
