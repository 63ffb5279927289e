const fs = require("fs"), path = require("path");
const app = require("express")();
app.get("/", (request, response) => response.send(`pid=${process.pid}\n`));
app.get("/held/:name", (request, response) =>
  fs.readFile(path.join(process.env.GATES, request.params.name), () => response.send(`pid=${process.pid}\n`)));
app.listen(Number(process.env.EXPRESS_PORT), "127.0.0.1");
