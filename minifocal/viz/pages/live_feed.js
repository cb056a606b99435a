"use strict";

// Events of the run. A browser opens few connections to one server: tabs therefore share one, through this file as a
// shared worker; where there is none, each has its own.

function openFeed(tell) {
  const source = new EventSource("events");
  for (const kind of ["document", "set", "append"])
    source.addEventListener(kind, (event) => tell({ kind, values: JSON.parse(event.data) }));
  source.addEventListener("over", () => {
    source.close(); // a browser would ask again and again
    tell({ kind: "over" });
  });
  source.onopen = () => tell({ kind: "open" });
  source.onerror = () => {
    const refused = source.readyState === EventSource.CLOSED; // otherwise the browser tries again by itself
    tell({ kind: refused ? "gone" : "lost" });
  };
  return source;
}

if (typeof SharedWorkerGlobalScope !== "undefined") {
  const ports = new Set();
  let feed = null;
  self.onconnect = (event) => {
    ports.add(event.ports[0]);
    feed?.close(); // a new feed begins with the whole document: the newcomer needs it, to the others it is no news
    feed = openFeed((message) => ports.forEach((port) => port.postMessage(message)));
  };
}
