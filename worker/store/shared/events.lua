-- include: deliveries
-- The streams of events.

local KEPT_MS = '604800000' -- a week

-- Add a job's change to the streams of its account and of the operators. note_codes: codes of its notes at its end,
-- separated by spaces.
local function tell(job_id, job, note_codes)
  local mine, event_id = 'account:' .. job.account .. ':events', nil
  for key, most in pairs({[mine] = '1000', events = '10000'}) do
    local added = redis.call('XADD', key, 'MAXLEN', '~', most, '*', 'account', job.account, 'server', job.server,
      'snapshot', job.snapshot, 'job', job_id, 'kind', job.kind, 'state', job.state, 'step', job.step or '',
      'notes', note_codes or '')
    if key == mine then event_id = added or job_id .. job.state end -- the stream cannot be written
  end
  redis.call('PEXPIRE', mine, KEPT_MS)
  -- a new step does not change the state
  if job.state ~= 'in_progress' or not job.step then call_webhooks(job_id, job, event_id) end
end
