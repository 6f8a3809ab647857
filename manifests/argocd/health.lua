-- Health of a ModelServingPlan. Conditions speak of status.observedGeneration, so those of an older spec say nothing.
local function condition(kind)
  for _, candidate in ipairs(obj.status.conditions or {}) do
    if candidate.type == kind then
      return candidate
    end
  end
  return {status = "Unknown", message = ""}
end

if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "Deleting"}
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the operator to see this generation"}
end

local stalled = condition("Stalled")
if stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
end
if obj.spec.mode == "Paused" then
  return {status = "Suspended", message = "Paused: replicas and weights are held"}
end
local ready = condition("Ready")
if ready.reason == "AwaitingApproval" then
  return {status = "Suspended", message = ready.message}
end
local feasible = condition("Feasible")
if feasible.status == "False" then
  return {status = "Degraded", message = feasible.message}
end

if ready.status == "True" then
  return {status = "Healthy", message = ready.message}
end
local reconciling = condition("Reconciling")
if reconciling.status == "True" then
  return {status = "Progressing", message = reconciling.message}
end
if ready.status == "False" then
  return {status = "Degraded", message = ready.message}
end
return {status = "Progressing", message = "Waiting for the operator"}
