-- include: clock, records, nodes, shown, enqueue, snapshots, last_id, retention, removal, schedules, idempotency
-- include: room, retrying, history, account_limits, windows, queue
-- Admit a create, restore, delete or undo: write everything, or refuse it and write nothing. A dry run is decided in
-- the same way, but its job holds no server and creates no snapshot. A scheduled create deletes older snapshots if
-- necessary.
-- Also when full.
-- ask: {kind, dry_run, account and id (not for a scheduled run): ID of the server for a create, of the restore's job
-- for an undo, else of the snapshot, name, description, request_id, job_id, silent_ms, retry_ms, again: retry a delete
-- that has not freed its space, present_only: of a restore or undo, live: of a create; nil: the server's default, or
-- else live_by_default, retries: the failed job that this one repeats, rule: of its retry (see `refuse_retry`),
-- schedule: {id, due_ms, next_ms, retry_ms}, or for a run in a window {id, server, due_ms, retry_ms}, traceparent or
-- nil, idempotency (see `replay`), whole_job, by: the calling token (see `chronicle`), or nil}
-- Answers {'admitted', job (see `show_job`; without `whole_job` {its ID} alone), snapshot (see
-- `as_shown`; nil for the dry run of a create, for a delete and for an undo)},
-- {'admitted'} alone for a delete whose server is gone, or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])

-- The job that holds the server. Its details are shown only to its own account, because the server may have had another
-- owner.
local function refuse_busy(job_id, account)
  local job = look_up('job:' .. job_id)
  if not job or job.account ~= account then return {'refused', 'server_busy', job_id} end
  return {'refused', 'server_busy', job_id, job.kind, job.queued_ms, job.snapshot}
end

local function refuse_server(server)
  if node_is_silent(server.node, ask.silent_ms) then return {'refused', 'node_unavailable'} end
  local holder = holder_of(server)
  if holder then return refuse_busy(holder, server.account) end
  if server.power == 'paused' and ask.kind ~= 'delete' then return {'refused', 'server_not_ready'} end
  demand(queue_of(server.node), 'zset')
end

local function chronicle_request(id, what)
  chronicle(id, what, ask.by, {
    request = ask.request_id, job = ask.job_id, retries = ask.retries, schedule = ask.schedule and ask.schedule.id,
  })
end

-- shown: the snapshot for the answer (see `as_shown`), or nil
local function admit(server_id, server, snapshot_id, snapshot, shown, undoes)
  local job = {
    undoes = undoes,
    kind = ask.dry_run and 'check_' .. ask.kind or ask.kind,
    server = server_id, account = server.account, node = server.node,
    server_name = text_for_job(server.name),
    snapshot = snapshot_id, snapshot_name = snapshot.name, snapshot_description = snapshot.description,
    snapshot_created_ms = snapshot.created_ms, request_id = ask.request_id, traceparent = ask.traceparent,
    present_only = ask.present_only and '1' or nil, live = ask.live and '1' or nil, start_by_ms = ask.start_by_ms,
  }
  enqueue(ask.job_id, job)
  if ask.retries then redis.call('HSET', 'job:' .. ask.retries, 'retried_by', ask.job_id) end
  if not ask.dry_run then server.job = ask.job_id end
  if not ask.whole_job and not ask.idempotency then return {'admitted', {ask.job_id}, shown} end
  -- equals the result of `show_job`, which would read all records again
  local durations = ask.whole_job and redis.call('LRANGE', 'node:' .. job.node .. ':milliseconds:' .. job.kind, 0, -1)
    or {}
  local whole = {ask.job_id, flattened(job), durations, flattened(server), ask.dry_run and '' or job.kind}
  return {'admitted', whole, shown}
end

-- What the answer shows of a snapshot of the server: {id, {field, value, ...}, name of the server}. Other fields may be
-- damaged. `account`: for stored answers that a front end of an earlier release repeats.
local function as_shown(id, snapshot, server)
  return {id, flattened({
    server = snapshot.server, account = snapshot.account, name = snapshot.name, status = snapshot.status,
    size_mb = snapshot.size_mb, created_ms = snapshot.created_ms, description = snapshot.description,
  }), server.name}
end

local function create()
  local server_id = ask.id
  local server = read_of(ask.account, 'server:' .. server_id)
  if not server or server.missing then return {'refused', 'server_not_found'} end
  local refused = refuse_server(server)
  if refused then return refused end
  -- the number of used slots is unknown until its node has published its snapshots
  if server.unpublished then return {'refused', 'node_unavailable'} end
  local namesake = redis.call('HGET', 'server:' .. server_id .. ':names', ask.name)
  if namesake and redis.call('HGET', 'snapshot:' .. namesake, 'server') ~= server_id then namesake = nil end
  local most = snapshots_max(server.account)
  local over = redis.call('SCARD', 'server:' .. server_id .. ':counted') + 1 - most
  demand_as_read('server:' .. server_id .. ':names')
  demand_as_read('server:' .. server_id .. ':counted')
  if ask.schedule and over > 0 and not namesake then
    refused = refuse_if_full('new')
    if refused then return refused end -- before anything is deleted for the new one
    make_room(scheduled_snapshots(server_id), over, server.node)
    over = redis.call('SCARD', 'server:' .. server_id .. ':counted') + 1 - most
  end
  if over > 0 then return {'refused', 'snapshot_limit_reached', tostring(most)} end
  if namesake then
    return {'refused', 'name_taken', namesake, redis.call('HGET', 'snapshot:' .. namesake, 'created_ms')}
  end
  refused = refuse_if_full('new')
  if refused then return refused end

  if ask.live == nil and server.consistency then ask.live = server.consistency == 'live' end
  if ask.live == nil then ask.live = ask.live_by_default end
  if ask.dry_run then
    return admit(server_id, server, '0', {name = ask.name, description = '', created_ms = now_text()})
  end
  local id = next_id()
  local snapshot = {
    server = server_id, account = server.account, node = server.node, name = ask.name,
    description = ask.description, status = 'in_progress', size_mb = '', created_ms = now_text(),
    schedule = ask.schedule and ask.schedule.id, expires_ms = ask.expires_ms,
  }
  add_snapshot(id, snapshot, true)
  chronicle_request(id, 'created')
  return admit(server_id, server, id, snapshot, as_shown(id, snapshot, server))
end

local function restore(snapshot, server)
  demand_brief('snapshot:' .. ask.id, snapshot)
  if snapshot.status ~= 'completed' then return {'refused', 'snapshot_not_ready', snapshot.status} end
  if not server or server.missing then return {'refused', 'server_not_ready'} end
  local refused = refuse_server(server) or refuse_if_full('changes')
  if refused then return refused end
  if not ask.dry_run then chronicle_request(ask.id, 'restored') end
  return admit(snapshot.server, server, ask.id, snapshot, as_shown(ask.id, snapshot, server))
end

local function delete(snapshot, server)
  if snapshot.protected == '1' then return {'refused', 'snapshot_protected'} end
  if not server or server.missing then -- its disks are gone too, so there is no space to free
    chronicle(ask.id, 'deleted', ask.by, {request = ask.request_id})
    forget_snapshot(ask.id, snapshot)
    return {'admitted'}
  end
  local refused = refuse_server(server)
  if refused then return refused end
  retire_snapshot(ask.id, snapshot, server.node, now_ms() + tonumber(ask.retry_ms))
  chronicle_request(ask.id, 'deleted')
  if ask.traceparent then redis.call('HSET', 'snapshot:' .. ask.id, 'traceparent', ask.traceparent) end
  return admit(snapshot.server, server, ask.id, snapshot_for_job(snapshot))
end

local function undo()
  local undone = read_of(ask.account, 'job:' .. ask.id)
  if not undone then return {'refused', 'job_not_found'} end
  local server = read_of(ask.account, 'server:' .. undone.server) -- it may have a new owner
  if not server or server.undoable ~= ask.id
      or now_ms() > (number(undone.undoable_until_ms) or 0) then
    return {'refused', 'undo_unavailable'}
  end
  if server.missing then return {'refused', 'server_not_ready'} end
  local refused = refuse_server(server) or refuse_if_full('changes')
  if refused then return refused end
  local snapshot = {
    name = undone.snapshot_name, description = undone.snapshot_description, created_ms = undone.snapshot_created_ms,
    size_mb = '', status = 'completed',
  }
  demand_brief('job:' .. ask.id, snapshot)
  return admit(undone.server, server, undone.snapshot, snapshot, nil, ask.id)
end

-- Create a snapshot of a server for a schedule. Also returns whether the refusal is temporary.
local function create_scheduled(id, schedule, server_id)
  ask.account, ask.id, ask.live = schedule.account, server_id, schedule.live == '1'
  local expire_after_ms = number(schedule.expire_after_ms)
  if expire_after_ms then
    ask.expires_ms = string.format('%.0f', now_ms() + expire_after_ms)
  elseif schedule.expire_after_ms ~= '' then
    return unreadable('schedule:' .. id, 'expire_after_ms cannot be read')
  end
  local answer = create()
  local passes = answer[2] == 'server_busy' or answer[2] == 'node_unavailable' or answer[2] == 'server_not_ready'
    or answer[2] == 'store_nearly_full' or answer[2] == 'store_read_only'
  return answer, passes
end

local function note_last_run(id, error)
  redis.call('HSET', 'schedule:' .. id, 'last_ms', now_ms(), 'last_job', error and '' or ask.job_id,
    'last_error', error or '')
end

-- Execute one run of a window. A refused run is retried until the window ends, and its job must start before then.
local function run_in_window()
  local id, server_id = ask.schedule.id, ask.schedule.server
  local run = id .. ':' .. server_id
  if tonumber(redis.call('ZSCORE', RUNS, run)) ~= ask.schedule.due_ms then return {'refused', 'schedule_not_due'} end
  local schedule = read('schedule:' .. id)
  if not schedule or schedule.enabled ~= '1' or not covers(schedule, labels_wanted(id, schedule), server_id) then
    redis.call('ZREM', RUNS, run)
    if schedule then redis.call('HINCRBY', 'schedule:' .. id, 'runs_planned', -1) end
    return {'refused', 'not_covered'}
  end
  local ends_ms = number(schedule.window_end_ms)
  if not ends_ms then return unreadable('schedule:' .. id, 'window_end_ms cannot be read') end
  ask.start_by_ms = string.format('%.0f', ends_ms)
  local answer, passes = {'refused', 'window_missed'}, false
  if now_ms() < ends_ms then answer, passes = create_scheduled(id, schedule, server_id) end
  local error = answer[1] == 'refused' and answer[2] or nil
  note_last_run(id, error)
  redis.call('HSET', 'schedule:' .. id .. ':runs', server_id, cjson.encode({
    ms = now_text(), job = error and '' or ask.job_id, error = error or '',
  }))
  local again_ms = now_ms() + ask.schedule.retry_ms
  if passes and again_ms < ends_ms then
    redis.call('ZADD', RUNS, string.format('%.0f', again_ms), run)
  else
    redis.call('ZREM', RUNS, run)
    local is_late = passes or error == 'window_missed'
    local count = not error and 'runs_started' or is_late and 'runs_missed' or 'runs_refused'
    redis.call('HINCRBY', 'schedule:' .. id, count, 1)
  end
  return answer
end

-- Only the first gateway that finds a due run executes it. This also records the next run, even if this one is refused.
local function run_schedule()
  local id = ask.schedule.id
  local schedule = read('schedule:' .. id)
  if not schedule or tonumber(redis.call('ZSCORE', 'schedules:due', id)) ~= ask.schedule.due_ms then
    return {'refused', 'schedule_not_due'}
  end
  if not is_a('id', schedule.server) then return unreadable('schedule:' .. id, 'server cannot be read') end
  local server = read('server:' .. schedule.server)
  if server and server.account ~= schedule.account then
    forget_schedule(id, schedule)
    return {'refused', 'server_not_found'}
  end
  local answer, passes = create_scheduled(id, schedule, schedule.server)
  local next_ms = ask.schedule.next_ms
  local again_ms = passes and math.min(now_ms() + ask.schedule.retry_ms, next_ms) or next_ms
  redis.call('ZADD', 'schedules:due', again_ms, id)
  redis.call('HSET', 'schedule:' .. id, 'next_ms', string.format('%.0f', again_ms))
  note_last_run(id, answer[1] == 'refused' and answer[2] or nil)
  return answer
end

local function refuse_again()
  local job = read('job:' .. ask.retries)
  if not job then return {'refused', 'job_not_found'} end
  return refuse_retry(job, ask.rule)
end

local function decide()
  if ask.schedule then return ask.schedule.server and run_in_window() or run_schedule() end
  local refused = ask.retries and refuse_again() or ask.dry_run and refuse_dry_run(ask.account)
  if refused then return refused end
  if ask.kind == 'create' then return create() end
  if ask.kind == 'undo' then return undo() end
  local snapshot = read_of(ask.account, 'snapshot:' .. ask.id)
  if not snapshot or (snapshot.status == 'deleting' and not ask.again) then
    return {'refused', 'snapshot_not_found'}
  end
  local server = read('server:' .. snapshot.server)
  if server and server.account ~= ask.account then return {'refused', 'snapshot_not_found'} end
  if ask.kind == 'restore' then return restore(snapshot, server) end
  return delete(snapshot, server)
end

local answer = replay(ask) or remember(ask, decide())
-- the stored answer has the whole job, for a front end of an earlier release that repeats it
if not ask.whole_job and type(answer[2]) == 'table' then answer[2] = {answer[2][1]} end
return answer
