// The client and its resources.
import { JobFailed } from './errors.ts'
import { ended, type Event, events } from './following.ts'
import type {
  CreateBody,
  Delivery,
  EditBody,
  Job,
  Redelivery,
  RestoreStarted,
  CoveredServer,
  CoveredServerList,
  Schedule,
  ScheduleBody,
  ScheduleEditBody,
  Server,
  Snapshot,
  SnapshotCreated,
  SnapshotDetails,
  Webhook,
  WebhookBody,
  WebhookEditBody,
  WebhookWithSecret,
} from './models.ts'
import { type Answer, type Query, Wire } from './wire.ts'

const PAGE_SIZE = 500

export interface ClientOptions {
  /** The account that a service token acts for. */
  accountId?: number
  /** How long a call is retried after a lost connection, a 429 or a 503. */
  retrySeconds?: number
}

/** A request that was accepted. `jobId`: the job that does the work; undefined for a delete whose server is gone. */
export interface Accepted<Body> {
  body: Body
  jobId: string | undefined
}

export interface RestoreOptions {
  /** `present` restores only the disks that exist. */
  disks?: 'all' | 'present'
}

/** Every call may throw ApiError, or a subclass, and Unreachable. */
export class Client {
  readonly snapshots: Snapshots
  readonly jobs: Jobs
  readonly servers: Servers
  readonly schedules: Schedules
  readonly webhooks: Webhooks
  readonly #wire: Wire

  constructor(url: string, token: string, { accountId, retrySeconds = 60 }: ClientOptions = {}) {
    const wire = (this.#wire = new Wire(url, token, { accountId, retrySeconds }))
    this.snapshots = new Snapshots(wire)
    this.jobs = new Jobs(wire)
    this.servers = new Servers(wire)
    this.schedules = new Schedules(wire)
    this.webhooks = new Webhooks(wire)
  }

  /**
   * Waits until the job has ended, and returns it. Throws JobFailed if it failed, unless `check` is false, and
   * StillRunning after `timeoutSeconds`.
   */
  async waitForJob(jobId: string | undefined, { timeoutSeconds = Infinity, check = true } = {}): Promise<Job> {
    if (jobId === undefined) throw new TypeError('The request has no job.')
    const job = await ended(this.#wire, jobId, timeoutSeconds)
    if (check && job.state === 'failed') throw new JobFailed(job)
    return job
  }

  /** The changes of the account's jobs from now on, or after the event with this ID. It ends when the stream ends. */
  async *events({ after }: { after?: string } = {}): AsyncGenerator<Event> {
    for await (const event of events(this.#wire.stream('events/', after === undefined ? {} : { 'Last-Event-ID': after }))) {
      if (event.event !== 'alive') yield event
    }
  }
}

class Resource {
  protected readonly wire: Wire

  constructor(wire: Wire) {
    this.wire = wire
  }

  protected async *pages<Item>(path: string, query: Query): AsyncGenerator<Item> {
    for (let page = 1; ; page++) {
      const { body } = await this.wire.call('GET', path, { query: { ...query, page, page_size: PAGE_SIZE } })
      const { count, results } = body as { count: number; results: Item[] }
      yield* results
      if (page * PAGE_SIZE >= count || results.length === 0) return
    }
  }

  protected async body<Body>(method: string, path: string, options: { body?: unknown; query?: Query } = {}): Promise<Body> {
    return (await this.wire.call(method, path, options)).body as Body
  }
}

export class Snapshots extends Resource {
  /** All snapshots of the account, newest first unless `sort` is given. */
  list(
    query: { server_id?: number; status?: Snapshot['status']; name?: string; sort?: string } = {},
  ): AsyncGenerator<Snapshot> {
    return this.pages('snapshots/', query)
  }

  /** The server's snapshot of this name, without failed ones. */
  async find(server_id: number, name: string): Promise<Snapshot | undefined> {
    for await (const snapshot of this.list({ server_id, name })) if (snapshot.status !== 'failed') return snapshot
    return undefined
  }

  get(id: number): Promise<SnapshotDetails> {
    return this.body('GET', `snapshots/${id}/`)
  }

  async create(body: CreateBody): Promise<Accepted<SnapshotCreated>> {
    return accepted(await this.wire.call('POST', 'snapshots/', { body }))
  }

  /** A dry run of a create. Returns its job, which has ended unless the node is busy. */
  checkCreate(body: CreateBody): Promise<Job> {
    return this.body('POST', 'snapshots/', { body, query: { dry_run: true } })
  }

  edit(id: number, body: EditBody): Promise<SnapshotDetails> {
    return this.body('PATCH', `snapshots/${id}/`, { body })
  }

  /** Overwrites all data of the server. */
  async restore(id: number, { disks }: RestoreOptions = {}): Promise<Accepted<RestoreStarted>> {
    return accepted(await this.wire.call('POST', `snapshots/${id}/restore/`, { query: { disks } }))
  }

  /** A dry run of a restore. Returns its job, which has ended unless the node is busy. */
  checkRestore(id: number, { disks }: RestoreOptions = {}): Promise<Job> {
    return this.body('POST', `snapshots/${id}/restore/`, { query: { disks, dry_run: true } })
  }

  async delete(id: number): Promise<Accepted<undefined>> {
    return accepted(await this.wire.call('DELETE', `snapshots/${id}/`))
  }
}

export class Jobs extends Resource {
  /** All jobs of the account, newest first. */
  list(query: { server_id?: number; state?: Job['state'] } = {}): AsyncGenerator<Job> {
    return this.pages('jobs/', query)
  }

  get(id: string): Promise<Job> {
    return this.body('GET', `jobs/${id}/`)
  }

  cancel(id: string): Promise<Job> {
    return this.body('POST', `jobs/${id}/cancel/`)
  }

  /** `id`: the restore's job. */
  async undoRestore(id: string, { disks }: RestoreOptions = {}): Promise<Accepted<Job>> {
    return accepted(await this.wire.call('POST', `restores/${id}/undo/`, { query: { disks } }))
  }
}

export class Servers extends Resource {
  get(id: number): Promise<Server> {
    return this.body('GET', `servers/${id}/`)
  }

  /** Sets the server's default for requests without `consistency`; null: the provider's default. */
  setConsistency(id: number, consistency: 'stop' | 'live' | null): Promise<Server> {
    return this.body('PATCH', `servers/${id}/`, { body: { consistency } })
  }

  /** Replaces all labels of the server, by which schedules may find it. */
  setLabels(id: number, labels: Record<string, string>): Promise<Server> {
    return this.body('PATCH', `servers/${id}/`, { body: { labels } })
  }
}

export class Schedules extends Resource {
  /** Those of one server each; with `target: 'labels'`, those by label. */
  list(query: { server_id?: number; target?: 'server' | 'labels' } = {}): AsyncGenerator<Schedule> {
    return this.pages('schedules/', query)
  }

  /** The servers that it covers now, each with its run in the current or latest window. */
  async *servers(id: string): AsyncGenerator<CoveredServer> {
    let after: string | null | undefined
    do {
      const page: CoveredServerList = await this.body('GET', `schedules/${id}/servers/`, {
        query: { limit: 500, after: after ?? undefined },
      })
      yield* page.results
      after = page.after
    } while (after)
  }

  get(id: string): Promise<Schedule> {
    return this.body('GET', `schedules/${id}/`)
  }

  create(body: ScheduleBody): Promise<Schedule> {
    return this.body('POST', 'schedules/', { body })
  }

  edit(id: string, body: ScheduleEditBody): Promise<Schedule> {
    return this.body('PATCH', `schedules/${id}/`, { body })
  }

  delete(id: string): Promise<void> {
    return this.body('DELETE', `schedules/${id}/`)
  }
}

export class Webhooks extends Resource {
  async list(): Promise<Webhook[]> {
    return (await this.body<{ results: Webhook[] }>('GET', 'webhooks/')).results
  }

  get(id: string): Promise<Webhook> {
    return this.body('GET', `webhooks/${id}/`)
  }

  /** The webhook with its secret, which is shown only once. */
  create(body: WebhookBody): Promise<WebhookWithSecret> {
    return this.body('POST', 'webhooks/', { body })
  }

  edit(id: string, body: WebhookEditBody): Promise<Webhook> {
    return this.body('PATCH', `webhooks/${id}/`, { body })
  }

  delete(id: string): Promise<void> {
    return this.body('DELETE', `webhooks/${id}/`)
  }

  rotateSecret(id: string): Promise<WebhookWithSecret> {
    return this.body('POST', `webhooks/${id}/rotate-secret/`)
  }

  test(id: string): Promise<Delivery> {
    return this.body('POST', `webhooks/${id}/test/`)
  }

  deliveries(id: string): AsyncGenerator<Delivery> {
    return this.pages(`webhooks/${id}/deliveries/`, {})
  }

  /** Sends all failed deliveries again. */
  redeliver(id: string): Promise<Redelivery> {
    return this.body('POST', `webhooks/${id}/redeliver/`)
  }
}

function accepted<Body>({ body, headers }: Answer): Accepted<Body> {
  return { body: body as Body, jobId: headers.get('X-Job-Id') ?? undefined }
}
