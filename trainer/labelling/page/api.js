// Requests to the session. Those that change something are sent one after another, in the order of the answers.

export class RequestError extends Error {
  /** @param {number} status HTTP status; 0 if there was no response. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Return the JSON that the session answers with. */
export async function request(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
  };
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(30_000) });
  } catch {
    throw new RequestError(0, "The session does not answer. Is hubhead label still running?");
  }
  let content;
  try {
    content = await response.json();
  } catch {
    throw new RequestError(response.status, `The session answered with HTTP status ${response.status} and no message.`);
  }
  if (!response.ok) throw new RequestError(response.status, content.error);
  return content;
}

/**
 * Requests that are not answered yet. After an error nothing of what waits is sent, and all of it is returned
 * to the page, so that no answer counts as kept that is not.
 */
export class Outbox {
  /** @param {(error: RequestError, jobs: object[]) => void} onError receives the failed job and those behind it. */
  constructor(onError) {
    this.jobs = [];
    this.busy = false;
    this.onError = onError;
  }

  /** Send a job: its path, a function `body`, the cards it is about,
   * and `done`, which receives the response. */
  add(job) {
    this.jobs.push(job);
    this.send();
  }

  /** Return the ids of the photos whose answers wait. */
  get photos() {
    return new Set(this.jobs.flatMap((job) => (job.cards ?? []).map((card) => card.id)));
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    while (this.jobs.length) {
      const job = this.jobs[0];
      let result;
      try {
        result = await request(job.path, job.body());
      } catch (error) {
        this.onError(error, this.jobs.splice(0));
        continue;
      }
      this.jobs.shift();
      job.done(result);
    }
    this.busy = false;
  }
}

/**
 * Return the name of this browser tab, which holds photos on the server. A tab takes over the name of one that was
 * closed, and with it the photos that were handed out to that one; the lock keeps two tabs from sharing a name.
 */
export async function chooseBrowserName() {
  const make = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (!navigator.locks) { // a page that is neither local nor encrypted
    const name = sessionStorage.getItem("browser") ?? make();
    sessionStorage.setItem("browser", name);
    return name;
  }
  const known = JSON.parse(localStorage.getItem("browsers") ?? "[]");
  const own = sessionStorage.getItem("browser");
  const fresh = make();
  for (const name of [...(own ? [own] : []), ...known, fresh]) {
    let isFree = await acquireName(name);
    // When a page is loaded again, it may take a moment until the old one has let go.
    for (let turn = 0; !isFree && name === own && turn < 10; turn += 1) {
      await new Promise((done) => setTimeout(done, 200));
      isFree = await acquireName(name);
    }
    if (!isFree && name !== fresh) continue;
    sessionStorage.setItem("browser", name);
    localStorage.setItem("browsers", JSON.stringify([name, ...known.filter((other) => other !== name)].slice(0, 20)));
    return name;
  }
  return fresh;
}

function acquireName(name) {
  return new Promise((acquired) => {
    navigator.locks.request(`hubhead-label-${name}`, { ifAvailable: true }, (lock) => {
      acquired(lock !== null);
      return lock && new Promise(() => {}); // until the tab is closed
    }).catch(() => acquired(false));
  });
}
