-- include: clock, records, walk, schedules, windows
-- Plan the runs of a schedule whose window has begun: one for each server that it covers, spread over the window. A
-- call plans some of the runs and the next call continues, which limits how long a call blocks Redis.
-- ask: {id, due_ms, starts_ms: the start of the open window, or '' if no window is open, next_ms: of the next window,
-- limit}
-- Answers {'planned', 1 if that was the last part or 0, number of runs}, {'missed', 1, 0} if the window is over, or
-- {'not_due', 1, 0}.
local ask = cjson.decode(ARGV[1])
local SPREAD = 0.8 -- share of the window; the rest is for runs that must wait
local GOLDEN = 0.6180339887498949 -- its multiples of consecutive IDs are spread almost evenly (Knuth 6.4)
local key = 'schedule:' .. ask.id

local schedule = read(key)
if not schedule or tonumber(redis.call('ZSCORE', 'schedules:due', ask.id)) ~= ask.due_ms then
  return {'not_due', 1, 0}
end
local labels = labels_wanted(ask.id, schedule)
local owner = not labels and redis.call('HGET', 'server:' .. schedule.server, 'account')
if owner and owner ~= schedule.account then
  forget_schedule(ask.id, schedule)
  return {'not_due', 1, 0}
end
local window_ms = number(schedule.window_ms)
if not window_ms then return unreadable(key, 'window_ms cannot be read') end

local function text(ms)
  return string.format('%.0f', ms)
end

local function wait_for_next()
  redis.call('HDEL', key, 'planned_after')
  redis.call('HSET', key, 'next_ms', text(ask.next_ms))
  redis.call('ZADD', 'schedules:due', text(ask.next_ms), ask.id)
end

if ask.starts_ms == '' then
  redis.call('HSET', key, 'last_ms', text(now_ms()), 'last_job', '', 'last_error', 'window_missed')
  wait_for_next()
  return {'missed', 1, 0}
end
local ends_ms = ask.starts_ms + window_ms
if number(schedule.window_start_ms) ~= ask.starts_ms then
  redis.call('UNLINK', key .. ':runs')
  redis.call('HSET', key, 'window_start_ms', text(ask.starts_ms), 'window_end_ms', text(ends_ms),
    'runs_planned', 0, 'runs_started', 0, 'runs_refused', 0, 'runs_missed', 0)
  redis.call('HDEL', key, 'planned_after')
  schedule.planned_after = nil
end

-- If the window began during an outage, its runs are spread over the remaining time.
local from_ms = math.max(now_ms(), ask.starts_ms)

local function plan(server_id)
  if not covers(schedule, labels, server_id) then return nil end
  local share = tonumber(string.sub(server_id, -9)) * GOLDEN % 1 * SPREAD
  redis.call('ZADD', RUNS, text(math.floor(from_ms + share * (ends_ms - from_ms))), ask.id .. ':' .. server_id)
  return server_id
end

local page
if labels then
  local after = json(schedule.planned_after or '')
  page = walk({after = after, limit = ask.limit}, 'servers:account:' .. schedule.account, 'server:', plan)
else
  page = {{}, attempt('server:' .. schedule.server, plan, schedule.server)}
end
local planned, is_done = #page - 1, not next(page[1])
redis.call('HINCRBY', key, 'runs_planned', planned)
if is_done then
  wait_for_next()
else
  redis.call('HSET', key, 'planned_after', cjson.encode(page[1]))
end
return {'planned', is_done and 1 or 0, planned}
