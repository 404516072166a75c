// The errors that calls throw.
import type { Conflict, FieldError, Job, ProblemDocument } from './models.ts'

/** Any error of this package. */
export class SnapshotsError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
  }
}

/** The service did not respond. */
export class Unreachable extends SnapshotsError {}

/** The service refused the request. `code` is stable; `detail` is for people. */
export class ApiError extends SnapshotsError {
  readonly status: number
  readonly code: string
  readonly detail: string
  readonly requestId: string
  readonly errors: FieldError[]
  readonly conflictsWith: Conflict | undefined

  constructor(status: number, problem: Partial<ProblemDocument>) {
    const { code = 'unknown', detail = '', request_id: requestId = '' } = problem
    super(`${status} ${code}: ${detail} (request ${requestId})`)
    this.status = status
    this.code = code
    this.detail = detail
    this.requestId = requestId
    this.errors = problem.errors ?? []
    this.conflictsWith = problem.conflicts_with ?? undefined
  }
}

/** The request has invalid fields: `errors` names each. */
export class InvalidRequest extends ApiError {}

/** The token is missing, invalid, or lacks a permission. */
export class AccessDenied extends ApiError {}

/** The object does not exist, or it belongs to another account. */
export class NotFound extends ApiError {}

/** Another job is using the server: `conflictsWith` names it. */
export class ServerBusy extends ApiError {}

/** Another snapshot of the server has the name: `conflictsWith` names it. */
export class NameTaken extends ApiError {}

/** The server or the account has reached a limit. */
export class LimitReached extends ApiError {}

/** Too many calls, even after retries. */
export class RateLimited extends ApiError {}

/** The service or the server's node is unavailable, even after retries. */
export class Unavailable extends ApiError {}

/** The job has failed. If it `isStranded`, an operator must repair the server. */
export class JobFailed extends SnapshotsError {
  readonly job: Job
  readonly code: string
  readonly detail: string
  readonly isStranded: boolean

  constructor(job: Job) {
    const { code = 'unknown', detail = '', stranded = false } = job.error ?? {}
    super(`${job.kind} ${job.id} failed: ${code}: ${detail}`)
    this.job = job
    this.code = code
    this.detail = detail
    this.isStranded = stranded
  }
}

/** The job has not ended within the given time. It continues. */
export class StillRunning extends SnapshotsError {
  readonly job: Job

  constructor(job: Job) {
    super(`${job.kind} ${job.id} is still ${job.state}`)
    this.job = job
  }
}

const BY_CODE: Record<string, typeof ApiError> = { server_busy: ServerBusy, name_taken: NameTaken }
const BY_STATUS: Record<number, typeof ApiError> = {
  400: InvalidRequest,
  401: AccessDenied,
  403: AccessDenied,
  404: NotFound,
  429: RateLimited,
  503: Unavailable,
}

export function ofProblem(status: number, problem: Partial<ProblemDocument>): ApiError {
  const code = problem.code ?? ''
  const Kind = code.endsWith('_limit_reached') ? LimitReached : (BY_CODE[code] ?? BY_STATUS[status] ?? ApiError)
  return new Kind(status, problem)
}
