// Browsers forbid workers in pages that are opened from disk, and the search of the site is a
// worker. Run its script in a hidden frame instead. The plugin `offline` would otherwise load a
// package for this from the network; it does not if a script named iframe-worker is configured.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html><title>Search</title>";
      this.ready = new Promise((resolve, reject) => {
        this.frame.addEventListener("load", () => this.start(url).then(resolve, reject), { once: true });
      });
      document.body.append(this.frame);
    }

    // Give the frame the functions of a worker's global scope, then run the script in it.
    start(url) {
      const scope = this.frame.contentWindow;
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      scope.importScripts = (...urls) => urls.reduce((done, next) => done.then(() => this.load(next)), Promise.resolve());
      return this.load(url);
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script");
        script.src = new URL(url, location.href).href;
        script.addEventListener("load", resolve);
        script.addEventListener("error", reject);
        this.frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
