-- include: records, nodes, queue, begin, pause, waits
-- Select the jobs in a node's queue that it must start now, and if requested begin those that have not begun. While
-- the node is paused, only jobs that have begun are selected; a resume wakes the node. Jobs that have ended or belong
-- to another node are removed from the queue.
-- Also when full.
-- ask: {node, owner, free: slots, limit: jobs of the queue to read, running: IDs, begin, left and late (see
-- `nodes/begin`), wait: {id, ms} or nil: with `begin`, if there is no job, the next one may be started and given to
-- this wait (see `waits`)}
-- Answers {{id} or {id, {field, value, ...} of a job that has begun now}, ...}, earliest first. With `begin`, answers
-- nothing without the lease.
local ask = cjson.decode(ARGV[1])
local BEGUN_MOST = 20 -- per call, to limit how long it blocks Redis; the node asks again for the others

local function begun(id)
  local job = read('job:' .. id)
  if begin(ask, id, job) then return nil end
  return {id, flattened(job)}
end

local function chosen(queued, paused)
  local answer, running = {}, {}
  for _, id in ipairs(ask.running) do running[id] = true end
  local most = ask.begin and math.min(ask.free, BEGUN_MOST) or ask.free
  for _, id in ipairs(queued) do
    local key = 'job:' .. id
    local node, state = unpack(redis.call('HMGET', key, 'node', 'state'))
    if not node and redis.call('EXISTS', key) == 1 then
      set_aside(key, 'node cannot be read') -- it does not block other jobs, and runs once it is repaired
    elseif node ~= ask.node then
      redis.call('ZREM', queue_of(ask.node), id)
    elseif state == 'completed' or state == 'failed' then
      forget_queued(id, {node = node})
    elseif not running[id] and not (paused and state ~= 'in_progress') then
      -- a job that has begun is returned again: the answer was lost or the node crashed, and its journal knows which
      local given = {id}
      if ask.begin and state ~= 'in_progress' then given = attempt(key, begun, id) end
      answer[#answer + 1] = given
      if #answer == most then break end
    end
  end
  return answer
end

if ask.begin and not owns_lease(ask.node, ask.owner) then return {} end
local queued = redis.call('ZRANGE', queue_of(ask.node), 0, ask.limit - 1)
local paused = #queued > 0 and still_paused(ask.node)
local answer = chosen(queued, paused)
if #answer > 0 then redis.call('DEL', queue_of(ask.node) .. ':wake') end -- it was for what was found now
if ask.wait and not paused and #answer == 0 then
  note_wait(ask)
elseif ask.begin then
  forget_wait(ask.node) -- a job that is admitted now must not start before one that is queued already
end
return answer
