-- include: deliveries
-- The streams of events.

-- Texts, because Redis formats each number that a script passes, which takes longer than many commands.
local EVENTS_KEPT_MS = '604800000' -- a week
local EVENTS_OF_ACCOUNT, EVENTS_OF_ALL = '1000', '10000'

-- Add a job's change to the streams of its account and of the operators. note_codes: codes of its notes at its end,
-- separated by spaces.
local function tell(job_id, job, note_codes)
  local mine, event_id = 'account:' .. job.account .. ':events', nil
  for key, most in pairs({[mine] = EVENTS_OF_ACCOUNT, events = EVENTS_OF_ALL}) do
    local added = redis.call('XADD', key, 'MAXLEN', '~', most, '*', 'account', job.account, 'server', job.server,
      'snapshot', job.snapshot, 'job', job_id, 'kind', job.kind, 'state', job.state, 'step', job.step or '',
      'notes', note_codes or '')
    if key == mine then event_id = added or job_id .. job.state end -- the stream cannot be written
  end
  -- was done when the job was queued, and is done again at its end
  if job.state ~= 'in_progress' then redis.call('PEXPIRE', mine, EVENTS_KEPT_MS) end
  -- a new step does not change the state
  if job.state ~= 'in_progress' or not job.step then call_webhooks(job_id, job, event_id) end
end
